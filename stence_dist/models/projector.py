"""From a tower's features to the joint space."""

from torch import Tensor, nn


def start_as_published(linear: nn.Linear) -> nn.Linear:
    """The same layer with StenCE's start: Xavier-uniform weights, biases 0.01."""
    nn.init.xavier_uniform_(linear.weight)
    nn.init.constant_(linear.bias, 0.01)
    return linear


class Projector(nn.Module):
    """StenCE's projector: LayerNorm, Linear(F, F), ReLU, Linear(F, E)."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.hidden = start_as_published(nn.Linear(width, width))
        self.output = start_as_published(nn.Linear(width, embedding))

    def forward(self, features: Tensor) -> Tensor:
        """(B, E), not normalized, from features (B, F)."""
        projected: Tensor = self.output(nn.functional.relu(self.hidden(self.norm(features))))
        return projected
