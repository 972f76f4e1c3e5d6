"""Azure OpenAI: both forms of its addresses, its own key header, its differences and its refusals."""
from __future__ import annotations

import json
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from api_server import Answer, Recorded, draw_png
from support import KEY, NO_ANSWER, REFUSED, ProgramCase, Result, mask_png, program

SMALL = draw_png(32, 32)
CLASSIC_VERSION = "2025-04-01-preview"


class Address(NamedTuple):
    """A base URL behind the server's origin, and the request that it must lead to."""
    base: str
    path: str
    version: str
    model: bool = True


ADDRESSES = (  # base URL, path, version, whether the body names the model
    Address("", "/openai/v1", "preview"),
    Address("/", "/openai/v1", "preview"),
    Address("/openai/v1", "/openai/v1", "preview"),
    Address("/openai/v1/", "/openai/v1", "preview"),
    Address("/openai/v1?api-version=2026-01-01", "/openai/v1", "2026-01-01"),
    Address("?api-version=preview", "/openai/v1", "preview"),
    Address("/openai/deployments/my-pictures", "/openai/deployments/my-pictures", CLASSIC_VERSION, False),
    Address("/openai/deployments/my-pictures/", "/openai/deployments/my-pictures", CLASSIC_VERSION, False),
    Address("/openai/deployments/my-pictures?api-version=2025-02-01-preview", "/openai/deployments/my-pictures",
            "2025-02-01-preview", False),
    Address("/openai/deployments/my-pictures/?api-version=2025-02-01", "/openai/deployments/my-pictures",
            "2025-02-01", False),
)


class AzureCase(ProgramCase):
    """Runs against the Azure paths of the loopback server, which takes no bearer key there."""

    def azure(self, command: str, base: str, *arguments: str) -> Result:
        words = ["generate", "a fox"] if command == "generate" else ["edit", self.file("in.png", SMALL), "a hat"]
        return self.run_inside(*words, "--api", "azure", "--base-url", self.server.origin + base, *arguments,
                               env={"GPT_IMAGE2_API_KEY": KEY})

    def check_post(self, post: Recorded, address: Address, command: str) -> None:
        """Path, version, key header and model are what Azure wants."""
        target, end = urlsplit(post.path), "/images/generations" if command == "generate" else "/images/edits"
        self.assertEqual((target.path, target.query), (address.path + end, f"api-version={address.version}"))
        self.assertEqual((post.header("api-key"), post.header("authorization")), (KEY, ""))
        self.assertEqual("model" in post.fields, address.model)


class AzureAddressesTest(AzureCase):
    """v1 and deployment form, each with and without a version."""

    def test_addresses(self) -> None:
        for address in ADDRESSES:
            for command in ("generate", "edit"):
                with self.fresh(address.base, command=command):
                    self.server.plan(Answer(image=SMALL))
                    result = self.azure(command, address.base, "-o", "a.png", "--overwrite")
                    self.assertEqual(self.saved_file(result).read_bytes(), SMALL)
                    self.check_post(self.only_post(), address, command)

    def test_model_is_the_deployment(self) -> None:
        result = self.azure("generate", "/openai/v1", "--model", "my-pictures")
        self.saved_file(result)
        self.assertEqual(self.only_post().fields["model"], "my-pictures")

    def test_unknown_deployment(self) -> None:
        for base, model in (("/openai/v1", "nothing"), ("/openai/deployments/nothing", "gpt-image-2")):
            with self.fresh(base):
                result = self.azure("generate", base, "--model", model, "--json")
                error = result.json["error"]
                self.assertEqual((result.exit_code, error["kind"], error["billed"]), (REFUSED, "not_found", "no"))
                self.assertIn("deployment", error["message"])
                self.assertNotIn("/v1/v1", error["hint"])
                self.only_post()

    def test_whole_edit(self) -> None:
        images = [self.file(f"{number}.png", SMALL) for number in range(2)]
        mask = self.file("mask.png", mask_png(32, 32))
        result = self.azure("edit", "/openai/deployments/my-pictures", "--image", images[0], "--image", images[1],
                            "--mask", mask, "--size", "1024x1024", "--format", "jpeg", "-o", "a.jpg")
        self.saved_file(result)
        names = [part.name for part in self.only_post().parts]
        self.assertEqual(names, ["prompt", "size", "output_format", "image[]", "image[]", "image[]", "mask"])

    def test_stream(self) -> None:
        result = self.azure("generate", "", "--stream", "--partial-images", "1", "-o", "a.png")
        self.assertEqual(self.saved_file(result).name, "a.png")

    def test_the_real_program(self) -> None:
        self.write_config({"base_url": self.server.origin, "api_key": KEY, "api": "azure", "model": "my-pictures"})
        result = self.run_program("generate", "a fox", "-v", "-o", "a.png")
        self.assert_succeeded(result)
        self.assertNotIn(KEY, result.stdout + result.stderr)
        self.check_post(self.only_post(), ADDRESSES[0], "generate")

    def test_openai_stays_openai(self) -> None:
        self.saved_file(self.generate_inside("a fox"))
        post = self.only_post()
        self.assertEqual((post.header("api-key"), post.header("authorization"), urlsplit(post.path).query),
                         ("", f"Bearer {KEY}", ""))

    def test_other_queries_are_refused(self) -> None:
        for base in ("?key=x", "/openai/v1?api-version=preview&key=x", "/openai/v1?api-version=a b", "/openai/v1?"):
            with self.subTest(base):
                self.assertEqual((self.azure("generate", base).exit_code, self.server.requests), (2, []))


class AzureIsChosenTest(AzureCase):
    """Chosen by --api, by the config or by the host; hosts of Azure cannot be reached here."""

    def settings(self, base_url: str, config: dict[str, Any] | None = None, **flags: Any) -> Any:
        path = self.write_config(config) if config else None
        return self.load_settings({"base_url": base_url, "config": path, **flags}, {"GPT_IMAGE2_API_KEY": KEY})

    def test_chosen_by_host(self) -> None:
        for host, expected in (
                ("res.openai.azure.com", "azure"), ("res.services.ai.azure.com", "azure"),
                ("RES.OpenAI.Azure.COM", "azure"), ("res.cognitiveservices.azure.com", "azure"),
                ("res.openai.azure.com:443", "azure"), ("a.b.openai.azure.com", "azure"), ("api.openai.com", "openai"),
                ("relay.example", "openai"), ("res.openai.azure.com.evil.example", "openai"),
                ("xopenai.azure.com", "openai"), ("azure.com", "openai"), ("res.azure.com", "openai")):
            for path in ("", "/openai/v1", "/openai/deployments/d?api-version=2025-04-01-preview"):
                with self.subTest(host + path):
                    self.assertEqual(self.settings(f"https://{host}{path}").api.value, expected)

    def test_chosen_by_flag_and_config(self) -> None:
        base = "https://gateway.example/openai/v1"
        self.assertEqual(self.settings(base, api="azure").api, ("azure", "--api"))
        self.assertEqual(self.settings(base, {"api": "azure"}).api.value, "azure")
        self.assertEqual(self.settings("https://res.openai.azure.com", api="openai").api.value, "openai")

    def test_unknown_api(self) -> None:
        path = self.write_config({"api": "azur", "base_url": self.server.url})
        result = self.run_inside("generate", "a fox", "--config", path, env={"GPT_IMAGE2_API_KEY": KEY})
        self.assertEqual((result.exit_code, self.server.requests), (3, []), result.stderr)

    def test_request_for_a_real_host(self) -> None:
        for base, expected in (
                ("https://res.openai.azure.com", "https://res.openai.azure.com/openai/v1/images/generations"
                                                 "?api-version=preview"),
                ("https://res.services.ai.azure.com/openai/v1/",
                 "https://res.services.ai.azure.com/openai/v1/images/generations?api-version=preview"),
                ("https://res.cognitiveservices.azure.com/openai/deployments/d",
                 "https://res.cognitiveservices.azure.com/openai/deployments/d/images/generations"
                 f"?api-version={CLASSIC_VERSION}")):
            with self.subTest(base):
                request = program.api_request(self.settings(base), KEY, "POST", "/images/generations")
                self.assertEqual((request.url, dict(request.headers)), (expected, {"api-key": KEY}))

    def test_a_key_for_openai_does_not_go_to_azure(self) -> None:
        result = self.run_inside("generate", "a fox", "--base-url", "https://res.openai.azure.com",
                                 env={"OPENAI_API_KEY": KEY})
        self.assertEqual(result.exit_code, 3, result.stderr)
        self.assertIn("is for api.openai.com", result.stderr)

    def test_show(self) -> None:
        result = self.run_inside("config", "--base-url", "https://res.openai.azure.com", "--json",
                                 env={"GPT_IMAGE2_API_KEY": KEY})
        self.assertEqual(result.json["settings"]["api"], {"value": "azure", "source": "from the host"})


class AzureRefusalsTest(AzureCase):
    """What Azure cannot do is said before anything is sent; what it refuses is told apart."""

    def test_webp_is_refused_here(self) -> None:
        for arguments in (("-o", "a.webp"), ("--format", "webp"), ("--format", "webp", "--compression", "50")):
            for command in ("generate", "edit"):
                with self.subTest(" ".join(arguments), command=command):
                    result = self.azure(command, "/openai/v1", *arguments)
                    self.assertEqual((result.exit_code, self.server.requests), (2, []))
                    self.assertIn("webp", result.stderr)

    def test_wrong_key(self) -> None:
        result = self.run_inside("generate", "a fox", "--api", "azure", "--base-url", self.server.origin, "--json",
                                 env={"GPT_IMAGE2_API_KEY": "test-key-of-another"})
        self.assertEqual((result.exit_code, result.json["error"]["kind"]), (3, "key"))
        self.only_post()

    def test_moderation(self) -> None:
        for code in ("contentFilter", "content_filter", "moderation_blocked"):
            with self.subTest(code):
                self.server.plan(self.refusal(code, "Your task failed as a result of our safety system."))
                result = self.azure("generate", "", "--json")
                error = result.json["error"]
                self.assertEqual((result.exit_code, error["kind"], error["code"]), (REFUSED, "moderation", code))

    def test_blocked_account_is_an_outage(self) -> None:
        text = ("Your resource has been temporarily blocked because we detected behavior that may violate our "
                "content policy.")
        for status, code in ((400, "contentFilter"), (400, "content_policy_violation"), (403, "403"), (429, "429")):
            with self.fresh(status, code=code):
                self.server.plan(self.refusal(code, text, status))
                result = self.azure("generate", "", "--json", "--timeout", "5")
                error = result.json["error"]
                self.assertEqual((result.exit_code, error["kind"]), (NO_ANSWER, "server"), error)
                self.assertIn("temporarily blocked", error["message"])
                self.assertNotIn("Change the prompt", error["hint"])
                self.only_post()

    def refusal(self, code: str, message: str, status: int = 400) -> Answer:
        return Answer(status=status, body=json.dumps({"error": {"code": code, "message": message}}).encode())
