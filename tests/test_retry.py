"""The retry rule as a table: curl's exit codes, HTTP statuses and error codes -> billed, and seconds or never."""
from __future__ import annotations

import unittest
from typing import Any, Mapping, NamedTuple

from api_server import error_body
from support import judged, program

NEVER = None


class Row(NamedTuple):
    """What curl and the server say, and what must follow."""
    exit_code: int = 0
    status: int = 0
    code: str = ""
    kind: str = "invalid_request_error"
    message: str = "no"
    headers: Mapping[str, str] = {}
    attempt: int = 1
    sent: bool = True
    billed: str = "no"
    pause: float | None = NEVER
    proxy: int = 0


# By curl's exit code. Where nothing of the request left the machine, it is sent again.
CURL = (
    Row(1, sent=False), Row(1, billed="maybe"), Row(2), Row(3), Row(26, sent=False), Row(26, billed="maybe"),
    Row(60, sent=False), Row(77, sent=False), Row(5, sent=False, pause=0.5), Row(6, sent=False, pause=0.5),
    Row(7, sent=False, pause=0.5), Row(7, sent=False, attempt=2, pause=1.0), Row(7, sent=False, attempt=3),
    Row(35, sent=False, pause=0.5), Row(28, sent=False, pause=0.5), Row(28, billed="maybe"), Row(16, billed="maybe"),
    Row(92, billed="maybe"), Row(18, status=200, billed="maybe"), Row(23, status=200, billed="maybe"),
    Row(52, billed="maybe"), Row(52, sent=False, pause=0.5), Row(55, billed="maybe"), Row(56, billed="maybe"),
    Row(56, sent=False, pause=0.5), Row(56, sent=False, proxy=407), Row(65, billed="maybe"),
    Row(56, sent=False, proxy=502, pause=0.5),
    # curl's own times are not a pause that anybody asks for.
    Row(7, sent=False, message="Failed to connect to h port 1 after 0 ms: Could not connect", pause=0.5),
    Row(28, sent=False, message="Connection timed out after 30001 milliseconds", pause=0.5),
    Row(-9, billed="maybe"), Row(-15, billed="maybe"), Row(99, billed="maybe"))

USER, RATE = "image_generation_user_error", "rate_limit_error"
# By what OpenAI's API answers.
ANSWERS = (
    *(Row(status=400, code=code) for code in ("unknown_parameter", "missing_required_parameter", "invalid_type",
                                              "invalid_value", "empty_string", "empty_array",
                                              "integer_below_min_value")),
    Row(status=400, code="invalid_value", kind=USER), Row(status=400, code="moderation_blocked", kind=USER),
    Row(status=400, code="billing_hard_limit_reached", kind="billing_limit_user_error"),
    Row(status=401, code="invalid_api_key"), Row(status=403, message="Your organization must be verified to use X"),
    Row(status=403, code="unsupported_country_region_territory"), Row(status=404),
    *(Row(status=429, code=code, kind="insufficient_quota", headers={"retry-after": "1"}) for code in (
        "credit_balance_exhausted", "organization_spend_limit_exceeded", "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded", "insufficient_quota")),
    Row(status=429, code="rate_limit_exceeded", kind="input-images", pause=12.0,
        message="Rate limit reached: Limit 5, Used 5, Requested 1. Please try again in 12s."),
    Row(status=429, code="rate_limit_exceeded", kind="input-images",
        message="Rate limit reached: Limit 5, Used 0, Requested 6. Please try again in 12s."),
    Row(status=429, code="slow_down", kind=RATE, pause=5.0), Row(status=429, code="slow_down", attempt=2, pause=10.0),
    Row(status=429, code="slow_down", attempt=4, pause=40.0), Row(status=429, code="slow_down", attempt=5),
    Row(status=429, headers={"retry-after": "1", "retry-after-ms": "534"}, pause=0.534),
    Row(status=429, headers={"retry-after": "2.5"}, pause=2.5),
    Row(status=429, headers={"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, pause=0.0),
    Row(status=429, headers={"retry-after": "soon"}, pause=5.0),
    Row(status=429, message="try again in 250ms", pause=0.25), Row(status=500, kind="server_error", billed="maybe"),
    Row(status=503, code="server_is_overloaded", pause=5.0), Row(status=503, billed="maybe"),
    Row(status=408, billed="maybe"), Row(status=409), Row(status=402),
    *(Row(status=status, headers={"retry-after": "1"}, billed="maybe") for status in (500, 502, 504, 520, 522, 524)),
    Row(status=200, code="image_generation_failed", kind="image_generation_server_error", billed="maybe"),
    Row(status=301), Row(status=413), Row(status=422), Row(status=405))


class RetryRuleTest(unittest.TestCase):
    """The retry rule alone: nothing is sent and nothing is opened."""

    def judge(self, row: Row, **request: Any) -> Any:
        document = program.json.loads(error_body(row.message, row.code or None, None, row.kind)) if row.status else None
        outcome = program.Outcome(row.exit_code, row.status, row.proxy, row.sent, "" if row.status else row.message)
        response = program.Response("/answer", row.status, row.headers, document)
        asked = program.Request("POST", "https://relay.invalid/v1/images/generations", **request)
        return judged(asked, outcome, response, row.attempt)

    def test_what_is_sent_again_and_what_was_billed(self) -> None:
        for row in (*CURL, *ANSWERS):
            with self.subTest(str(row)):
                failure, pause = self.judge(row)
                self.assertEqual(failure.billed, row.billed)
                if row.pause is None:
                    self.assertIsNone(pause)
                else:
                    self.assertAlmostEqual(pause, row.pause, 3)

    def test_what_may_be_billed_is_never_sent_again(self) -> None:
        for row in (*CURL, *ANSWERS):
            failure, pause = self.judge(row)
            if failure.billed != "no":
                self.assertIsNone(pause, row)

    def test_an_idempotent_create_is(self) -> None:
        for row in (*CURL, *ANSWERS):
            failure, pause = self.judge(row, idempotent=True)
            self.assertEqual(pause is not None, row.pause is not None or failure.billed == "maybe", row)

    def test_uploads_cost_nothing(self) -> None:
        for row in (*CURL, *ANSWERS):
            self.assertEqual(self.judge(row, purpose="upload")[0].billed, "no")

    def test_downloads_are_tried_three_times_and_kept(self) -> None:
        for attempt, again in ((1, True), (2, True), (3, False)):
            failure, pause = self.judge(Row(status=404, attempt=attempt), purpose="download")
            self.assertEqual((failure.exit_code, failure.billed, failure.collectable, pause is not None),
                             (7, "yes", True, again))

    def test_image_is_an_image_whatever_comes_after_it(self) -> None:
        response = program.Response("/answer", 200, {}, {"data": [{"b64_json": "QUJD"}]})
        for exit_code in (0, 18, 28, 56):
            outcome = program.Outcome(exit_code, 200, 0, True, "")
            asked = program.Request("POST", "https://relay.invalid/v1/images/generations")
            self.assertEqual(judged(asked, outcome, response, 1), (None, None))
