"""Pauses that servers ask for, and refusals: who was asked, is credit or moderation the cause, what it costs."""
from __future__ import annotations

import json
import select
import subprocess
import time
import unittest
from typing import Any
from unittest import mock

from api_server import Answer, error_body
from support import LIMITED, NO_ANSWER, ProgramCase, judged, program

SPELLINGS = (
    ("Please try again in 20s.", 20), ("Please try again in 1m12s.", 72), ("Please try again in 28m48s.", 1728),
    ("Please try again in 7h12m0s.", 25920), ("try again in 114h18m0s", 411480), ("Please try again in 1.5s", 1.5),
    ("please slow down and try again after 51.84 seconds.", 51.84), ("Please retry after 45 seconds.", 45),
    ("Your quota will reset after 3s.", 3), ("Too many requests, the next one in 3s", 3), ("try again in 250ms", 0.25),
    ("No deployments available, Try again in 5 seconds. Passed model=x", 5), ("Please retry in 34.07s.", 34.07),
    ("Please wait 2 minutes", 120), ("wait for at least 30 secs", 30), ("Try again in 1 minute.", 60),
    ("RETRY AFTER 1 HOUR AND 5 MINUTES", 3900), ("resets in 1h 2m 3s", 3723),
    ("resets in 6 hours, 3 mins", 21780), ("retryDelay: 34s", 34),
    ("available again in 2 days", 172800), ("Cool-down: 500 ms", 0.5), ("after 10 sec", 10),
    ("Limit: 5 requests in 60s. Please try again in 12s.", 12))
NO_PAUSE = ("", "Rate limit reached", "try again later", "try again in a few minutes", "retry after 2026-11-01",
            "edits of 3 models after 5 media", "waited 30s", "in 2 stages", "again at 12:30", "retry after 10:30")


class PauseSpellingsTest(unittest.TestCase):
    """pause_asked() alone."""

    def test_words(self) -> None:
        for words, seconds in SPELLINGS:
            with self.subTest(words):
                self.assertAlmostEqual(program.server_pause({}, words), seconds)

    def test_other_words_name_no_pause(self) -> None:
        for words in NO_PAUSE:
            with self.subTest(words):
                self.assertIsNone(program.server_pause({}, words))

    def test_headers(self) -> None:
        for value, seconds in (("7", 7), ("2.5", 2.5), ("30s", 30), ("1m12s", 72), ("0", 0), ("9" * 30, 1e30)):
            with self.subTest(value):
                self.assertAlmostEqual(program.server_pause({"retry-after": value}, "again in 1s") / max(1, seconds),
                                       seconds / max(1, seconds))

    def test_absurd_headers_do_not_crash(self) -> None:
        for value in ("soon", "-5", ",", "1 2 3", "Fri, 31 Dec 9999 23:59:59 GMT", "Fri, 01 Jan 999999999999 00:00:00",
                      "Fri, 99 Foo 0 99:99:99 +9999999999999", "9" * 5000, "1 Jan " + "9" * 5000, "\u0661" * 3, "1e5"):
            with self.subTest(value[:40]):
                pause = program.server_pause({"retry-after": value}, "")
                self.assertTrue(pause is None or pause >= 0, pause)

    def test_long_text_is_read_at_once(self) -> None:
        for part in ("again ", "1 ", "1", "in ", "again in 1 ", "a ", "1m", "retry after "):
            program.server_pause({}, part * (60_000 // len(part)))  # a slow pattern would not end


class SleepTest(unittest.TestCase):
    """All sleeping for a server is one function's, in small steps with a sign of life."""

    def test_steps_are_small_and_told(self) -> None:
        clock, steps = [1000.0], []
        run = mock.Mock(collectable=False)

        def nothing_comes(*lists: Any) -> Any:
            steps.append(lists[-1])
            clock[0] += lists[-1]
            return [], [], []

        with mock.patch.object(select, "select", nothing_comes), \
                mock.patch.object(time, "monotonic", lambda: clock[0]):
            program.rest(20, run, "status")
        self.assertAlmostEqual(sum(steps), 20)
        self.assertLessEqual(max(steps), 0.5)
        self.assertEqual(run.console.progress.call_args_list, [mock.call(run.typical, "status")] * len(steps))


def limited(message: str = "Rate limit reached.", status: int = 429, code: str = "rate_limit_exceeded",
            **headers: str) -> Answer:
    """A refusal that may be tried again."""
    return Answer(status=status, body=error_body(message, code), headers=tuple(
        (name.replace("_", "-"), value) for name, value in headers.items()))


class LongPauseTest(ProgramCase):
    """No pause outlasts --timeout: nothing is sent after it, and the pause is named."""

    def fails(self, result: Any, exit_code: int, billed: str, *words: str) -> None:
        """Check one failure that tells these words."""
        error = result.json["error"]
        self.assertEqual((result.exit_code, error["billed"]), (exit_code, billed), result.stderr)
        for word in words:
            self.assertIn(word, error["message"])

    def test_pause_in_words(self) -> None:
        self.server.plan(limited("Please try again in 7h12m0s."), *[limited()] * 9)
        result = self.generate("a fox", "--json")
        self.fails(result, 5, "no", "25920 s", "--timeout")
        self.assertIn("25920 s", result.json["error"]["hint"])
        self.assertEqual(len(self.server.posts), 1)

    def test_short_pause_and_less_time(self) -> None:
        self.server.plan(limited(Retry_After="20"), *[limited()] * 9)
        self.fails(self.generate("a fox", "--json", "--timeout", "3"), 5, "no", "20 s")
        self.assertEqual(len(self.server.posts), 1)

    def test_overload(self) -> None:
        self.server.plan(limited("busy", 503, "server_is_overloaded", Retry_After="3600"), *[limited()] * 9)
        self.fails(self.generate("a fox", "--json"), 6, "no", "3600 s")
        self.assertEqual(len(self.server.posts), 1)

    def test_result_url(self) -> None:
        for asked in ("86400", "4000", "Fri, 31 Dec 9999 23:59:59 GMT", "9" * 400):
            with self.fresh(asked):
                self.server.plan(Answer(as_url=True))
                self.server.plan_files(Answer(status=503, headers=(("Retry-After", asked),)))
                self.fails(self.generate("a fox", "--json"), 7, "yes", " s, after --timeout has run out")
                self.saved_file(self.generate("a fox"))  # collects it
                self.assertEqual(len(self.server.posts), 1)

    def test_result_url_with_little_time(self) -> None:
        self.server.plan(Answer(as_url=True))
        self.server.plan_files(Answer(status=503, headers=(("Retry-After", "20"),)))
        self.fails(self.generate("a fox", "--json", "--timeout", "2"), 7, "yes", "20 s")

    def test_input_url(self) -> None:
        self.server.plan_files(*[Answer(status=503, body=b"later", headers=(("Retry-After", "200"),))] * 9)
        result = self.edit(self.server.origin + "/files/in.png", "a hat", "--json", "--timeout", "5")
        self.fails(result, 2, "no", "200 s")
        self.assertEqual(self.server.posts, [])

    def test_slow_result(self) -> None:
        self.server.plan(Answer(as_url=True))
        self.server.plan_files(*[Answer(trickle=0.5, slice=1)] * 9)
        result = self.generate("a fox", "--json", "--timeout", "2", timeout=25)
        self.fails(result, 7, "yes", "no reply within 2 s")

    def test_task_that_says_at_once_is_not_asked_without_a_break(self) -> None:
        pending = Answer(body=b'{"id": "t1", "status": "pending"}', headers=(("Retry-After-Ms", "0"),))
        self.server.plan(pending)
        for place in ("/v1/tasks/t1", "/v1/images/generations/t1"):
            self.server.plan_gets(place, *[pending] * 99)
        self.fails(self.generate("a fox", "--json", "--timeout", "3"), 6, "maybe", "pending")
        self.assertLess(len(self.server.gets), 15)

    def test_reader_that_goes_away_during_a_pause(self) -> None:
        self.server.plan(limited(Retry_After="300"))
        child = self.start_generate("a fox", "--json")
        assert child.stdout and child.stderr
        self.assertTrue(any(b"trying again" in line for line in child.stderr))
        child.stdout.close()
        try:
            self.assertEqual(child.wait(20), 141)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            raise
        finally:
            child.stderr.close()
        self.assertEqual(len(self.server.posts), 1)

    def test_numbers_of_5000_digits(self) -> None:
        huge = "9" * 5000
        for message in (f"Limit 5, Used 0, Requested {huge}.", f"Limit {huge}, Used 0, Requested {huge}."):
            with self.fresh(message[:30]):
                self.server.plan(*[limited(message, Retry_After="4000")] * 9)
                self.fails(self.generate("a fox", "--json"), 5, "no")
                self.server.reset()
                self.saved_file(self.generate("a fox"))  # it is asked for anew, not failing for ever
                self.assertEqual(len(self.server.posts), 1)


NO_CHANNEL = "No available channel for model gpt-image-2 under group default (distributor)"
NOBODY_ASKED = (
    (503, error_body(NO_CHANNEL, "model_not_found")), (503, error_body("No available accounts: none for this model")),
    (503, error_body("no such model", "model_not_found")), (500, error_body("no auth available", "auth_not_found")),
    (503, error_body("There is no available model provider that meets your routing requirements")),
    (503, error_body("\u5f53\u524d\u5206\u7ec4 default \u4e0b\u5bf9\u4e8e"
                     "\u6a21\u578b x \u65e0\u53ef\u7528\u6e20\u9053")),
    (503, b"no healthy upstream"), (503, b"no available server"), (500, error_body("x", "channel:no_available_key")),
    (503, b"<html><h1>503 Service Unavailable</h1>No server is available to handle this request.</html>"),
    (503, b'{"code": "get_channel_failed", "message": "x"}'),
    *((status, b"<html><title>relay | %d</title></html>" % status) for status in (521, 523, 525, 526, 530)))
PERHAPS_ASKED = ((503, b""), (503, error_body("try later")), (520, b"<html></html>"), (522, b"<html></html>"),
                 (524, b"<html></html>"), (502, b"<html></html>"), (500, error_body("no image was made")),
                 (500, error_body("the provider is not available for long prompts")))
NO_CREDIT = (
    (403, error_body("user quota is not enough", "insufficient_user_quota")), (403, error_body("x", "quota_exceeded")),
    (403, error_body("token quota is not enough", "pre_consume_token_quota_failed")),
    (429, error_body("x", "quota_exceeded")),
    (403, b'{"code": "INSUFFICIENT_BALANCE", "message": "Insufficient account balance"}'),
    (403, b'{"code": "INSUFFICIENT_BALANCE", "message": "no"}'),
    (200, b'{"code": "INSUFFICIENT_BALANCE", "msg": "no"}'),
    (403, b'{"error": {"message": "no"}, "code": "insufficient_user_quota"}'),
    (403, b'{"error": "insufficient_quota", "message": "no"}'),
    (403, b'{"error": "no", "code": "insufficient_balance"}'),
    (403, b'{"data": {"code": "INSUFFICIENT_BALANCE", "message": "no"}}'),
    (403, b'{"detail": {"code": "insufficient_credits", "message": "no"}}'),
    (403, b'{"errors": [{"code": "insufficient_funds"}]}'),
    (403, b'{"error": {"type": "insufficient_balance", "code": 403}}'),
    (403, error_body("\u7528\u6237\u989d\u5ea6\u4e0d\u8db3, \u5269\u4f59\u989d\u5ea6: $0.01")),
    (403, error_body("Your credit balance is too low")), (200, error_body("Insufficient credits")),
    (400, error_body("You have no credits remaining.")), (429, error_body("x", "organization_spend_limit_exceeded")),
    (400, error_body("x", "billing_hard_limit_reached")), (402, b""),
    (400, b'{"response": {"status": 403, "body": {"error": {"code": "insufficient_user_quota", "message": "x"}}}}'))
OTHER_REFUSALS = (
    (403, error_body("insufficient permissions for this operation"), "forbidden"),
    (429, error_body("Quota exceeded for requests per minute, retry in 34s", "rate_limit_exceeded"), "rate_limit"),
    (403, b'{"code": "FORBIDDEN", "message": "no"}', "forbidden"), (200, b'{"code": 200, "data": []}', "no_image"),
    (200, b'{"data": [], "prompt": "insufficient funds"}', "no_image"),
    (503, error_body("busy", "server_is_overloaded"), "overloaded"),
    (404, error_body("no such model", "model_not_found"), "not_found"),
    (429, error_body("No deployments available"), "rate_limit"))


class RefusalKindsTest(unittest.TestCase):
    """What an answer means, from its status and body."""

    def refusal(self, status: int, body: bytes) -> Any:
        """The failure that the program makes of it."""
        try:
            document, text = json.loads(body), ""
        except ValueError:
            document, text = None, body.decode()
        asked = program.Request("POST", "https://relay.invalid/v1/images/generations")
        response = program.Response("/answer", status, {}, document, text)
        return judged(asked, program.Outcome(0, status, 0, True, ""), response, 1)[0]

    def test_nobody_was_asked(self) -> None:
        for status, body in NOBODY_ASKED:
            with self.subTest(status=status, body=body):
                failure = self.refusal(status, body)
                self.assertEqual((failure.kind, failure.billed, failure.exit_code), ("unavailable", "no", 6))

    def test_somebody_may_have_been_asked(self) -> None:
        for status, body in PERHAPS_ASKED:
            with self.subTest(status=status, body=body):
                self.assertEqual(self.refusal(status, body).billed, "maybe")

    def test_credit_is_used_up(self) -> None:
        for status, body in NO_CREDIT:
            with self.subTest(status=status, body=body):
                failure = self.refusal(status, body)
                self.assertEqual((failure.kind, failure.billed, failure.exit_code), ("quota", "no", 5))

    def test_neighbours_are_what_they_were(self) -> None:
        for status, body, kind in OTHER_REFUSALS:
            with self.subTest(status=status, body=body):
                self.assertEqual(self.refusal(status, body).kind, kind)

    def test_code_is_told_wherever_it_stands(self) -> None:
        self.assertEqual(self.refusal(403, b'{"code": "SOME_CODE", "message": "no"}').code, "SOME_CODE")


class RefusalRunsTest(ProgramCase):
    """The same through the front door."""

    def test_one_request_and_what_it_means(self) -> None:
        for exit_code, kind, (status, body) in ((NO_ANSWER, "unavailable", NOBODY_ASKED[0]),
                                                (NO_ANSWER, "unavailable", NOBODY_ASKED[-1]),
                                                (LIMITED, "quota", NO_CREDIT[0]), (LIMITED, "quota", NO_CREDIT[4])):
            with self.fresh(body):
                self.server.plan(Answer(status=status, body=body))
                result = self.generate_inside("a fox", "--json")
                error = result.json["error"]
                self.assertEqual((result.exit_code, error["kind"], error["billed"]), (exit_code, kind, "no"))
                self.assertEqual(len(self.server.posts), 1)

    def test_moderation_tells_stage_and_categories(self) -> None:
        error = {"code": "moderation_blocked", "message": "Rejected by the safety system.", "moderation_details": {
            "moderation_stage": "output", "categories": ["sexual", "violence"]}}
        for options in (("--json",), ()):
            with self.fresh(options=options):
                self.server.plan(Answer(status=400, body=json.dumps({"error": error}).encode()))
                result = self.generate_inside("a fox", *options)
                self.assertEqual(result.exit_code, 4)
                text = result.json["error"]["message"] if options else result.stderr
                self.assertIn("sexual, violence", text)
                self.assertIn("stage: output", text)

    def test_odd_details_do_not_crash(self) -> None:
        for details in (None, [], "x", {"categories": 7}, {"categories": [1, None, {"a": 2}], "moderation_stage": []},
                        {"categories": {}}, {"categories": "sexual"}):
            with self.fresh(details):
                body = {"error": {"code": "moderation_blocked", "message": "x", "moderation_details": details}}
                self.server.plan(Answer(status=400, body=json.dumps(body).encode()))
                self.assertEqual(self.generate_inside("a fox").exit_code, 4)


class ChildOutputTest(unittest.TestCase):
    """What a finished child wrote is read, whoever else still holds its pipe."""

    def output(self, script: str) -> bytes:
        return bytes(program.child_output(["sh", "-c", script], (), "key", 10))

    def test_output_is_not_lost(self) -> None:
        self.assertEqual(self.output("printf test-key"), b"test-key")
        self.assertEqual(self.output(":"), b"")

    def test_long_output_comes_whole(self) -> None:
        self.assertEqual(self.output("head -c 60000 /dev/zero"), bytes(60000))

    def test_what_a_grandchild_keeps_open_is_not_waited_for(self) -> None:
        self.assertEqual(self.output("printf test-key; sleep 15 & exit"), b"test-key")
        self.assertEqual(self.output("sleep 15 & exit"), b"")

    def test_closed_pipe_of_a_child_that_lives_on(self) -> None:
        self.assertEqual(self.output("printf test-key; exec >&-; sleep 0.7"), b"test-key")
