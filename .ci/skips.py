"""Print every skipped test of a JUnit report and fail on one that has no accepted reason."""

import os
import sys
import xml.etree.ElementTree as ElementTree

ACCEPTED = ("gpu:", "network namespaces:")


def main(path: str) -> int:
    """The exit code: 0 where every skip is accepted and some test ran."""
    accepted = (*ACCEPTED, "sample data:") if os.environ.get("NO_SAMPLE_DATA") == "1" else ACCEPTED
    suite = ElementTree.parse(path).getroot().find("testsuite")
    assert suite is not None, f"{path} is not a JUnit report"
    refused = 0
    for case in suite.iter("testcase"):
        for skip in case.iter("skipped"):
            reason = skip.get("message", "")
            fine = reason.startswith(accepted)
            refused += not fine
            print(f"{'skipped' if fine else 'REFUSED SKIP'}: {case.get('classname')}::{case.get('name')}: {reason}")
    skipped, failed = int(suite.get("skipped", "0")), int(suite.get("failures", "0")) + int(suite.get("errors", "0"))
    passed = int(suite.get("tests", "0")) - skipped - failed
    print(f"{passed} passed, {failed + refused} failed, {skipped - refused} skipped")
    return 1 if refused or failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
