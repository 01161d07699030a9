"""What every test runs under: checked shapes and types, JAX on two CPU devices, one thread per library.

Everything here is set before the packages, JAX or torch are first imported; the environment also reaches the
programs that tests start.
"""

import html
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import tokenizers

from tests.checking import check_packages

check_packages("lmcore", "jaxlm", "torchlm", "parity")

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "2"  # the cheapest mesh: what is sharded wrongly shows
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# XLA's compiler takes most of a test's time. What one test compiled serves the next in all processes, and nothing is
# optimized; `make slow` optimizes as users do.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # the first process makes the folder, and removes it at its end
    _compiled = tempfile.TemporaryDirectory(prefix="twinlm-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch: small tensors, and test processes side by side
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads and fork don't mix
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax  # noqa: E402

from lmcore import config as configs  # noqa: E402
from lmcore.config import Config, ModelConfig, TokenizerConfig  # noqa: E402
from lmcore.data.tokenizer import train as train_tokenizer  # noqa: E402
from lmcore.run.saving import Checkpoints  # noqa: E402
from parity.settings import jax_settings, torch_settings  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

jax.devices()  # both exist from here on; else the first test that asks for one device would decide for all

hypothesis.settings.register_profile("lm", deadline=None, print_blob=True)  # the first example may compile
hypothesis.settings.load_profile("lm")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[Any]:
    """Give each test the frameworks' settings that the first had: an engine that starts changes them."""
    with jax_settings(), torch_settings():
        return (yield)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser; a test that needs one is skipped without."""
    found = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    return next(found, "") or pytest.skip("chromium is not installed; on Debian: apt-get install chromium")


@pytest.fixture
def in_browser(chromium: str, tmp_path: Path) -> Callable[[str, int, str], Any]:
    """Gives the value of a JavaScript expression in a page that is laid out in a given width.

    The page is in a frame, since a window of chromium has a minimum width.
    """

    def evaluate(page: str, width: int, expression: str) -> Any:
        file = tmp_path / "frame.html"
        file.write_text(
            f'<!doctype html><iframe width="{width}" height="900" style="border: 0" srcdoc="{html.escape(page)}">'
            "</iframe>"
            f"<script>onload = () => document.title = JSON.stringify(frames[0].eval({json.dumps(expression)}))</script>"
        )
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path}/user"]
        command = [chromium, *flags, "--dump-dom", file.as_uri()]
        run = subprocess.run(command, capture_output=True, text=True, timeout=120)
        title = re.search("<title>(.*?)</title>", run.stdout, re.DOTALL)
        assert title, run.stderr
        return json.loads(html.unescape(title[1]))

    return evaluate


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator["Browser"]:
    """A headless chromium, driven by playwright.

    It ends with the module: while it is open, this thread has a running event loop, so that `asyncio.run` is refused.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: "Browser") -> Iterator[Callable[..., "Page"]]:
    """Opens an empty page of a width and a color scheme; what it writes to the console as an error fails the test.

    A test that expects errors clears `page.errors`, a list of their texts.
    """
    pages: list[Any] = []

    def make(width: int = 1200, dark: bool = False, height: int = 900, **options: Any) -> "Page":
        scheme = "dark" if dark else "light"
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
        page.set_default_timeout(15_000)
        page.errors = []
        page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        pages.append(page)
        return page

    yield make
    errors = [error for page in pages for error in page.errors]
    for page in pages:
        page.close()
    assert errors == []


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[[str], Path]:
    """Makes the run folder of a framework, with a state that none can read."""

    def write(folder: Path) -> Callable[[], None]:
        folder.mkdir()
        (folder / "weights").write_text("none")
        return lambda: None

    def make(framework: str) -> Path:
        config = Config(model=ModelConfig(vocab_size=257, dim=8, n_layers=1, n_heads=2))
        configs.save(config, tmp_path / "config.yaml")
        train_tokenizer(TokenizerConfig(kind="bytes"), []).save(tmp_path / "tokenizer.json")
        saving = Checkpoints(tmp_path, framework, keep=1)
        saving.save(1, 1.0, write)
        saving.wait()
        saving.close()
        return tmp_path

    return make


@pytest.fixture(scope="session")
def lm_data() -> Path:
    """The folder of real text named by LM_DATA; a test that needs it is skipped without."""
    folder = os.environ.get("LM_DATA")
    if not folder:
        pytest.skip("LM_DATA is not set: it names the folder of real text (tinystories/, tinyshakespeare/, …)")
    return Path(folder)


@pytest.fixture(scope="session")
def llama_tokenizer() -> str:
    """A tokenizer.json as SentencePiece has them: a text is one word with a space before it; bytes for the unknown."""
    text = ["Once upon a time there was a fox, and the fox was here."] * 9 + ["héllo wörld, 123 there  are  spaces\n"]
    special = ["<unk>", "<s>", "</s>"]
    inner = tokenizers.Tokenizer(
        tokenizers.models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True),
    )
    whole, sequence = tokenizers.normalizers, tokenizers.normalizers.Sequence
    inner.normalizer = sequence([whole.Prepend("\u2581"), whole.Replace(" ", "\u2581")])
    parts = tokenizers.decoders
    inner.decoder = parts.Sequence(
        [parts.Replace("\u2581", " "), parts.ByteFallback(), parts.Fuse(), parts.Strip(" ", 1, 0)]
    )
    every = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = sorted(set("".join(text)) - set("éö "))
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330, special_tokens=special + every, limit_alphabet=len(letters), show_progress=False
    )
    inner.train_from_iterator(text, trainer)
    state = json.loads(inner.to_str())
    state["added_tokens"] = state["added_tokens"][:3]  # the bytes are tokens of the model alone
    inner = tokenizers.Tokenizer.from_str(json.dumps(state))
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return inner.to_str(pretty=True)


@pytest.fixture(scope="session")
def sentencepiece(llama_tokenizer: str) -> str:
    """The same, with a merge for every pair of tokens that makes a token, as a converted SentencePiece model has."""
    state = json.loads(llama_tokenizer)
    model = state["model"]
    made = dict.fromkeys("".join(pair) for pair in model["merges"])
    model["merges"] = [
        [token[:cut], token[cut:]]
        for token in made
        for cut in range(1, len(token))
        if {token[:cut], token[cut:]} <= model["vocab"].keys()
    ]
    return json.dumps(state)


@pytest.fixture(scope="session")
def foreign_tokenizers(llama_tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tokenizer.json of each kind that others make, every one with </s>."""
    models, pre, norms, trainers = (
        getattr(tokenizers, name) for name in ("models", "pre_tokenizers", "normalizers", "trainers")
    )
    special, text = ["<unk>", "</s>"], ["Once upon a time, it's 12345 foxes' day!\n\n  A naïve 字 \t end."] * 9
    alphabet = pre.ByteLevel.alphabet()
    shared = {"special_tokens": special, "show_progress": False}
    words = r"'s|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = pre.Sequence([pre.Split(tokenizers.Regex(words), "isolated"), pre.ByteLevel(False, use_regex=False)])
    bpe = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, **shared)
    byte_level = tokenizers.decoders.ByteLevel()
    meta = tokenizers.decoders.Metaspace()
    kinds = {
        "gpt2": (models.BPE(), bpe, None, pre.ByteLevel(False), byte_level),
        "roberta": (models.BPE(), bpe, None, pre.ByteLevel(True), byte_level),
        "llama3": (models.BPE(), bpe, None, split, byte_level),
        "metaspace": (
            models.BPE(unk_token="<unk>", fuse_unk=True),
            trainers.BpeTrainer(vocab_size=90, **shared),
            None,
            pre.Metaspace(split=False),
            meta,
        ),
        "unigram": (
            models.Unigram(),
            trainers.UnigramTrainer(vocab_size=60, unk_token="<unk>", **shared),
            norms.NFKC(),
            pre.Metaspace(),
            meta,
        ),
        "wordpiece": (
            models.WordPiece(unk_token="<unk>"),
            trainers.WordPieceTrainer(vocab_size=90, **shared),
            norms.BertNormalizer(),
            pre.BertPreTokenizer(),
            tokenizers.decoders.WordPiece(),
        ),
    }
    made = {"llama": llama_tokenizer}
    for kind, (model, trainer, normalizer, splitter, decoder) in kinds.items():
        inner = tokenizers.Tokenizer(model)
        if normalizer is not None:
            inner.normalizer = normalizer
        inner.pre_tokenizer, inner.decoder = splitter, decoder
        inner.train_from_iterator(text, trainer)
        made[kind] = inner.to_str()
    folder = tmp_path_factory.mktemp("tokenizers")
    for kind, source in made.items():
        (folder / f"{kind}.json").write_text(source, encoding="utf-8")
    return {kind: folder / f"{kind}.json" for kind in made}
