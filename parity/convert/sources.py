"""What can be converted: a run, a checkpoint, a Hugging Face folder or bare weights, opened as one kind of source."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lmcore.errors import UserError

if TYPE_CHECKING:
    from lmcore.config import Config
    from lmcore.data.tokenizer import Tokenizer
    from lmcore.run.checkpoints import Checkpoint
    from parity.convert.companions import Companions
    from parity.convert.names import Side
    from parity.convert.states import State
    from parity.convert.tensors import Tensors

__all__ = ["Source", "is_model", "is_run", "open_source"]


@dataclass(frozen=True)
class Source:
    """A run, a checkpoint, a Hugging Face folder or bare weights, opened."""

    path: Path
    side: "Side"
    config: "Config"
    tokenizer: "Tokenizer | None"
    """None where there is no `tokenizer.json`."""
    checkpoint: "Checkpoint | None"
    """None for a Hugging Face folder and for bare weights."""
    weights: "Tensors | None"
    """Weights that are no checkpoint's, in the dtypes they are stored in; None for a checkpoint."""
    companions: "Companions"
    """Files of the Hugging Face folder that it is, or was imported from; none for other runs."""
    base: Path | None = None
    """Run or folder of the model that its adapters adapt; None for a model without adapters."""

    def merged(self) -> "Source":
        """Return the same model with its adapters merged into its weights, a model without training."""
        from parity.convert.tensors import merge_adapters

        model, folder = self.config.model, self.path if self.checkpoint is None else self.checkpoint.run_dir
        config = replace(self.config, model=replace(model, lora=None), train=replace(self.config.train, init_from=None))
        if self.tokenizer is not None:
            named = replace(config.tokenizer, kind="file", file=str(folder / "tokenizer.json"))
            config = replace(config, tokenizer=named)
        weights = merge_adapters(self.tensors(self.side), model, self.side)
        return replace(self, path=folder, config=config, checkpoint=None, weights=weights)

    def state(self, optimizer: bool = True) -> "State":
        """Return weights and, if asked for, moments, in the source's own names; an imported model's moments are zero.

        Of a checkpoint with adapters, theirs alone.

        Raises:
            UserError: a checkpoint cannot be read.
        """
        from parity.convert.moments import zero_moments
        from parity.convert.states import State, parameter_type, read_state

        if self.checkpoint is not None:
            return read_state(self.checkpoint, self.config, optimizer)
        assert self.weights is not None
        if not optimizer:
            return State(self.side, 0, self.weights, None)
        dtype = parameter_type(self.config)
        return State(self.side, 0, self.weights.astype(dtype), zero_moments(self.config, self.side, dtype))

    def tensors(self, side: "Side") -> "Tensors":
        """Return the weights in a side's names, each of which is read when it is asked for.

        Raises:
            UserError: they cannot be read, or are not those of the model.
        """
        from parity.convert.states import open_weights
        from parity.convert.tensors import convert_tensors

        weights = self.weights if self.checkpoint is None else open_weights(self.checkpoint, self.config)
        assert weights is not None
        return convert_tensors(weights, self.config.model, self.side, side)


def open_source(
    path: Path,
    which: Literal["best", "latest"] = "best",
    verify: bool = True,
    model_config: Path | None = None,
    base: Path | None = None,
) -> Source:
    """Open a run, a checkpoint, a Hugging Face folder or bare weights, and check all but a checkpoint's arrays.

    Args:
        path: a run folder, one checkpoint, a Hugging Face Llama folder, a peft folder, or safetensors with our names.
        which: checkpoint of a run folder.
        verify: whether to compare the files with their checksums.
        model_config: YAML file of a config, for bare weights that do not say what model they are of.
        base: what a peft folder adapts, any of these; None takes what it names.

    Raises:
        UserError: it is none of them, cannot be read, or is damaged.
    """
    from lmcore import config as configs
    from lmcore.data.chat import SETTINGS, read_template
    from lmcore.data.conversations import stops_of
    from lmcore.data.tokenizer import Tokenizer
    from lmcore.model.memory import check_memory
    from lmcore.run.base import find_base
    from lmcore.run.checkpoints import find_checkpoint
    from lmcore.run.folder import check_tokenizer
    from parity.backends import BACKENDS
    from parity.convert.bare import is_bare, read_bare
    from parity.convert.companions import Companions
    from parity.convert.huggingface import read_folder
    from parity.convert.peft import is_peft

    if is_bare(path) and not (is_model(path) or is_run(path)):
        bare = read_bare(path, model_config, verify)
        return Source(path, bare.side, bare.config, bare.tokenizer, None, bare.weights, bare.companions)
    if model_config is not None:
        raise UserError(
            f"--model_config: found {str(model_config)!r}, but {path} says itself what model it is; leave it out"
        )
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing"
        raise UserError(
            f"{path}: found {found}, expected a run folder, a checkpoint, a Hugging Face Llama folder or weights with "
            "our names in .safetensors"
        )
    if is_peft(path):
        return _open_adapters(path, verify, base)
    if is_model(path):
        model = read_folder(path, verify)
        return Source(path, "hf", model.config, model.tokenizer, None, model.weights, model.companions)
    if not (is_run(path) or _is_checkpoint(path)):
        raise UserError(
            f"{path}: found no config.yaml (a run), checkpoint.json (a checkpoint), config.json (a Hugging Face "
            "model), adapter_config.json (adapters) or model.safetensors (weights with our names); expected one of them"
        )
    checkpoint = find_checkpoint(path, which, verify)
    if checkpoint.framework not in BACKENDS:
        raise UserError(
            f"{checkpoint.folder}: found framework {checkpoint.framework!r}, expected {' or '.join(BACKENDS)}"
        )
    config = configs.load(checkpoint.run_dir / "config.yaml", verify)
    check_memory(config, training=False)
    if verify:
        check_tokenizer(checkpoint.run_dir, checkpoint)
    file, named = checkpoint.run_dir / "tokenizer.json", config.tokenizer
    tokenizer = Tokenizer.load(file, named.eot_token, named.stop_tokens) if file.exists() else None
    template = read_template(checkpoint.run_dir) if (checkpoint.run_dir / SETTINGS).exists() else None
    if tokenizer and template:  # of a run that was trained on conversations
        tokenizer.stop_ids |= stops_of(tokenizer, template)
    side = BACKENDS[checkpoint.framework].side
    base_run = None if config.model.lora is None else find_base(checkpoint, verify).run_dir
    companions = Companions.of_run(base_run or checkpoint.run_dir, verify)
    return Source(path, side, config, tokenizer, checkpoint, None, companions, base_run)


def _open_adapters(path: Path, verify: bool, base: Path | None) -> Source:
    """Open a peft folder, with the model that it adapts."""
    from parity.convert.peft import read_peft
    from parity.convert.tensors import Tensors, convert_tensors

    adapters = read_peft(path, verify)
    places = [base] if base is not None else [Path(adapters.base), path / adapters.base] if adapters.base else []
    found = next((place for place in places if place.exists()), None)
    if found is None:
        named = str(base) if base is not None else adapters.base
        raise UserError(f"--base: found {named!r}, expected the folder of the model that {path} adapts")
    adapted = open_source(found, verify=verify)
    if adapted.config.model.lora is not None:
        raise UserError(f"--base: {found} has adapters itself, expected a model without; merge them first")
    try:
        model = replace(adapted.config.model, lora=adapters.lora)
        model.check_lora()
        weights = Tensors(adapted.tensors("hf").stored | adapters.weights.stored)
        weights = convert_tensors(weights, model, "hf", "hf")
    except UserError as error:
        raise UserError(f"{path}: does not fit {found}: {error}") from error
    return replace(
        adapted,
        path=path,
        side="hf",
        config=replace(adapted.config, model=model),
        checkpoint=None,
        weights=weights,
        base=found,
    )


def is_run(path: Path) -> bool:
    return (path / "config.yaml").exists() or (path / "checkpoints").is_dir()


def _is_checkpoint(path: Path) -> bool:
    return (path / "checkpoint.json").exists()


def is_model(path: Path) -> bool:
    return (path / "config.json").exists() and not is_run(path)
