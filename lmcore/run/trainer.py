"""The training loop: everything in a run that isn't mathematics, shared by both twins.

Batches, the schedule of reports, evaluations, samples and checkpoints, and resuming are here; an `Engine` owns
the model. The loop waits for the device only where it reports, so that the next batch is prepared while a step runs.
"""

import io
import math
import shlex
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lmcore import config as configs
from lmcore.config import Config
from lmcore.data.batches import Batches, read_header
from lmcore.data.prepare import Prepared
from lmcore.errors import UserError, note, printable
from lmcore.files import Damaged, replace_file
from lmcore.generate import chat, prompting
from lmcore.hardware import keep_freed_memory
from lmcore.model.flops import flops_per_token
from lmcore.model.memory import check_batch, check_memory
from lmcore.model.pretrained import Pretrained, open_pretrained
from lmcore.optim.schedule import learning_rate
from lmcore.report.plots import attempt, plot_loss
from lmcore.run import checkpoints, provenance
from lmcore.run.base import base_to_load, describe_base
from lmcore.run.checkpoints import Checkpoint
from lmcore.run.engine import Engine, EngineClass, evaluate
from lmcore.run.opening import check_agreement, open_run
from lmcore.run.processes import ALONE, Processes, attributed, first
from lmcore.run.progress import Progress
from lmcore.run.saving import Checkpoints
from lmcore.run.signals import SaveRequest, StopRequest
from lmcore.run.storage import Writes, note_space
from lmcore.run.trackers import Row, Tracker, check_libraries, open_trackers, read_metrics
from lmcore.run.watch import MAX_SKIPPED, Watch

__all__ = ["Diverged", "run"]


class Diverged(UserError):
    """The loss, the parameters or the optimizer state are no longer finite."""

    exit_code = 1


def run(config: Config, engine_class: EngineClass, is_command: bool = False) -> int:
    """Train as `config` says, from the start or from the latest checkpoint that is not damaged.

    All checks come first, before any text is tokenized or a folder is created.

    Args:
        config: the run.
        engine_class: the framework's engine.
        is_command: whether the process is for this run only, and may be ended from within (see `lmcore.run.signals`).

    Returns:
        Exit code: 0, or 128 + the signal that interrupted the run; 0 too where a launcher watches several processes.

    Raises:
        UserError: the config does not fit the run folder, the data or the machine.
        Diverged: the loss or the state became infinite or NaN.
    """
    check_batch(config)
    if config.train.device == "cpu":
        check_memory(config, training=True)
    check_libraries(config)
    with engine_class.joined(config) as processes, attributed(processes):
        config = replace(config, run_dir=processes.broadcast(config.run_dir or ""))
        return _run(config, engine_class, is_command, processes)


def _run(config: Config, engine_class: EngineClass, is_command: bool, processes: Processes) -> int:
    first(processes, partial(engine_class.check_machine, config, processes))
    with ExitStack() as stack:
        save = stack.enter_context(SaveRequest(is_command))
        stop = StopRequest(config.checkpoint.grace, is_command, says=processes.rank == 0)
        found = first(processes, partial(open_run, config, engine_class, stack, processes))
        complete, prepared, _, _, latest = found
        check_agreement(processes, complete, prepared, latest)
        processes.largest(0)  # all have read the folder before anything is written there
        return Run(*found, stack, processes).train(save, stop)


class Run:
    """One run of the loop: the folder, the engine, the trackers and the progress display."""

    def __init__(
        self,
        config: Config,
        prepared: Prepared,
        engine: Engine,
        batches: Batches,
        latest: Checkpoint | None,
        stack: ExitStack,
        processes: Processes = ALONE,
    ):
        """Restore or initialize the engine, write the run folder, and open the trackers.

        Args:
            config: config with the vocabulary size set.
            prepared: tokenized text.
            engine: the model.
            batches: training batches.
            latest: checkpoint to resume from; None for a new run.
            stack: receives what must be closed at the end of the run.
            processes: those that train together; the first alone writes and prints.
        """
        assert config.run_dir is not None
        self.config, self.prepared, self.engine, self.batches = config, prepared, engine, batches
        self.folder, self.processes, self.leads = Path(config.run_dir), processes, processes.rank == 0
        self.pretrained: Pretrained | None = None
        restored = self._begin(latest)
        self.start = restored.step if restored else 0
        skipped = restored.skipped if restored else 0
        self.writes, self.trackers = Writes(config.checkpoint.on_error), list[Tracker]()
        self.progress = Progress(config.train.steps, self.start, None if self.leads else io.StringIO())
        self.clock = time.monotonic()
        self.timed_from = self.start
        self.checkpoints = Checkpoints(
            self.folder,
            engine.framework,
            config.checkpoint.keep,
            config.checkpoint.on_error,
            processes,
            describe_base(self.base, self.folder) if self.base else None,
        )
        stack.callback(self.checkpoints.close)
        if not self.leads:
            self.watch = Watch([], skipped)
            return
        # In this order: after a kill in between, the old tokenizer still matches the checksum in a checkpoint.
        template = () if prepared.template is None else ("tokenizer_config.json",)
        for name in ("meta.json", "tokenizer.json", *template):
            replace_file(self.folder / name, (prepared.folder / name).read_bytes())
        facts = {"framework": engine.framework, "device": engine.device_name, "parameters": engine.parameter_count}
        saved = replace(config, checkpoint=replace(config.checkpoint, verify=True))  # false holds for this time only
        if config.train.init_from is not None:  # to resume without it
            saved = replace(saved, tokenizer=replace(config.tokenizer, file=str(self.folder / "tokenizer.json")))
        if self.pretrained is not None:
            self.pretrained.copy_companions(self.folder)
            facts["init_from"] = self.pretrained.sums()
        configs.save(saved, self.folder / "config.yaml")
        provenance.record(self.folder, self.start, facts, config, read_header(prepared.folder).get("files", {}))
        note_space(config, self.folder, self.start, len(checkpoints.checkpoint_folders(self.folder)))
        self.trackers += open_trackers(config, self.folder, self.start if latest else None)
        for tracker in self.trackers:
            stack.callback(self.writes.close, tracker.name, tracker.close)
        self.watch = Watch(read_metrics(self.folder / "metrics.jsonl"), skipped)

    def _begin(self, latest: Checkpoint | None) -> Checkpoint | None:
        """Initialize or restore the engine; return the checkpoint that was restored."""
        train, model = self.config.train, self.config.model
        what = "parameters" if model.lora is None else "parameters of adapters"
        size = f"{self.engine.parameter_count:,} {what}, vocabulary {model.vocab_size:,}"
        work = f"{train.steps:,} steps of {train.batch_size} × {train.seq_len} tokens"
        self._print(f"{self.engine.framework} on {self.engine.device_name}, {train.precision}: {size}, {work}")
        self.base = base_to_load(self.config, latest)
        if self.base is not None:
            self._print(f"weights of step {self.base.step} of {self.base.run_dir}")
            self.engine.load_base(self.base.state)
        if latest is None:
            source = self.config.train.init_from
            if source is not None and self.base is None:
                self.pretrained = open_pretrained(source, self.config.data.dir)
            self.engine.init(self.pretrained.weight if self.pretrained else None)
            self._print(f"run folder {self.folder}" + (f", from the weights of {source}" if source else ""))
            return None
        latest = self._restore(latest)
        self._print(f"run folder {self.folder}, resuming from step {latest.step}")
        try:
            latest.verify_metrics()
        except Damaged as error:
            if self.leads:
                note(str(error))
        return latest

    def _print(self, text: str) -> None:
        if self.leads:
            print(printable(text), flush=True)

    def _set_aside(self, latest: Checkpoint, reason: str = "") -> None:
        if self.leads:
            checkpoints.set_aside_newer(latest, *([reason] if reason else []))

    def _restore(self, latest: Checkpoint) -> Checkpoint:
        """Restore the latest checkpoint with a finite state, and rename those after it."""
        self._set_aside(latest)
        self.engine.restore(latest.state)
        while not self.engine.is_finite():
            reason = f"{latest.folder}: its state is not finite"
            earlier = checkpoints.newest_checkpoint(self.folder, self.config.checkpoint.verify, before=latest.step)
            if earlier is None:
                raise UserError(f"{reason}, and there is no earlier checkpoint; start a new run")
            latest = earlier
            self._set_aside(latest, reason)
            self.engine.restore(latest.state)
        return latest

    def train(self, save: SaveRequest, stop: StopRequest) -> int:
        """Train for all remaining steps; return the exit code."""
        with stop:
            with self.progress:
                stopped_at = self._steps(save, stop)
                self.checkpoints.finish()
                self.processes.largest(0)  # a launcher ends the others where one ends
                stop.all_saved()
                if stopped_at is not None:
                    code = 128 + (stop.received or 0) if self.processes.count == 1 else 0
                    return self._interrupted(stopped_at, code) if self.leads else code
            if self.leads:
                self._finish()
        return 0

    def _steps(self, save: SaveRequest, stop: StopRequest) -> int | None:
        """Train until the end, or until a signal stops the run: return the step that was saved then."""
        config, steps = self.config, self.config.train.steps
        if self.pretrained is not None:  # so that the run needs its source no more
            self.checkpoints.save(0, None, self.engine.save)
        for step in range(self.start, steps):
            metrics = self.engine.train_step(self.batches.batch(step), learning_rate(config, step))
            done = step + 1
            self.watch.observe(done, metrics)
            if step == self.start:  # wait here, so that compilation does not count into the rate of training
                self.progress.update({"step": done, "loss": float(metrics["loss"])})
                self._restart_clock(done)
                if stop.is_command:
                    keep_freed_memory()
            due = _due(done, config.checkpoint.every, steps)
            evaluates = due or _due(done, config.eval.every, steps)
            row = None
            if evaluates or _due(done, config.log.every, steps):
                row = self._report(done, metrics, evaluates)
            if _due(done, config.sample.every, steps):
                self._sample(done)  # before the checkpoint, from which a killed run would not write it again
            stopping, requested = self._requests(save, stop)
            if requested:
                self.progress.say(f"SIGUSR1 received, saving step {done}")
            if due or requested:
                self._save(done, metrics, row)
            if stopping and done < steps:
                self._save(done, metrics, row)
                return done
            if row:
                self._restart_clock(done)
        return None

    def _requests(self, save: SaveRequest, stop: StopRequest) -> tuple[bool, bool]:
        """Return whether any process is asked to stop, and to save: all then do so after the same step."""
        asked = 2 * bool(stop.received) + save.take()
        if self.processes.count == 1:
            return asked >= 2, asked % 2 == 1
        stops, saves = self.processes.sum([asked // 2, asked % 2])
        return stops > 0, saves > 0

    def _restart_clock(self, done: int) -> None:
        self.clock, self.timed_from = time.monotonic(), done

    def _report(self, done: int, metrics: dict[str, Any], evaluates: bool) -> Row:
        self.checkpoints.poll()
        config, per_step = self.config, self.config.train.batch_size * self.config.train.seq_len
        row: Row = {"step": done, "tokens": done * per_step, "loss": float(metrics["loss"])}
        row |= {"lr": learning_rate(config, done - 1), "grad_norm": float(metrics["grad_norm"])}
        for message in self.watch.report(row, counts="skipped" in metrics):
            self.writes.attempt("standard output", partial(self.progress.say, message))
        mfu = None
        if done > self.timed_from:
            row["tokens_per_second"] = (done - self.timed_from) * per_step / (time.monotonic() - self.clock)
            if self.engine.peak_flops:
                used = row["tokens_per_second"] * flops_per_token(config.model, config.train.seq_len)
                mfu = used / self.engine.peak_flops
        problem = self._problem(row["loss"])
        if evaluates and not problem:
            row |= evaluate(self.engine, self.prepared.valid, config, config.eval.windows)
        self._log(row, mfu)
        if not problem and not math.isfinite(row.get("valid_loss", 0.0)):
            problem = f"the validation loss became {row['valid_loss']}"
        if problem:
            raise self._diverged(f"{problem} by step {done}")
        return row

    def _problem(self, loss: float) -> str:
        """Return why training cannot go on after a step with this loss, or an empty string."""
        if self.watch.in_a_row >= MAX_SKIPPED:
            return f"{self.watch.in_a_row} updates in a row were skipped, since loss or gradient were not finite,"
        if self.config.optim.nonfinite == "stop" and not math.isfinite(loss):
            return f"the loss became {loss}"
        return ""

    def _save(self, done: int, metrics: dict[str, Any], row: Row | None) -> None:
        """Save a checkpoint, unless the state is not finite, so that training could not be resumed from it."""
        problem = self._problem(float(metrics["loss"]))
        if not problem and not self.engine.is_finite():
            problem = "the parameters or the optimizer state became infinite or NaN"
        if problem:
            raise self._diverged(f"{problem} by step {done}")
        self.watch.read()
        self.checkpoints.save(done, row.get("valid_loss") if row else None, self.engine.save, self.watch.skipped)

    def _diverged(self, what: str) -> Diverged:
        """Return the error that names the last good checkpoint and what may help."""
        self.checkpoints.wait()
        if not self.leads:
            return Diverged("")  # the first process says so
        self._plot()
        last = checkpoints.newest_checkpoint(self.folder, verify=False)
        remaining = f"the last good checkpoint is {last.folder}" if last else "no checkpoint had been saved"
        lr, clip = self.config.optim.lr, self.config.optim.clip
        clipped = f"a smaller optim.clip than {clip}" if clip > 0 else "optim.clip 1.0"
        return Diverged(f"{what}, which was not saved; {remaining}; try a lower optim.lr than {lr} or {clipped}")

    def _log(self, row: Row, mfu: float | None) -> None:
        for tracker in self.trackers:
            self.writes.attempt(tracker.name, partial(tracker.log, row))
        self.writes.attempt("standard output", lambda: self.progress.update(row, mfu))

    def _sample(self, done: int) -> None:
        begin = time.monotonic()
        options, context = self.config.sample, self.config.model.max_seq_len
        generator = self.engine.generator(options)
        if not self.leads:
            return
        tokenizer, template = self.prepared.tokenizer, self.prepared.template
        if template is None:
            [text] = prompting.complete(generator, tokenizer, [options.prompt], options, context=context)
            sample = text.prompt + text.text
        else:
            messages = [{"role": "user", "content": options.prompt}]
            *_, text = chat.reply(generator, tokenizer, template, messages, options, context=context)
            sample = f"{options.prompt}\n\n{text.text}"
        self.writes.attempt("standard output", lambda: self.progress.say(f"\n{sample}\n"))
        for tracker in self.trackers:
            self.writes.attempt(f"{tracker.name}, sample", partial(tracker.text, done, "sample", sample))
        self.clock += time.monotonic() - begin  # generation does not count into the rate of training

    def _interrupted(self, done: int, code: int) -> int:
        """Say how to resume, and return the exit code."""
        self._plot()
        self.progress.say(
            f"stopped at step {done}, saved; resume with: "
            f"python -m {self.engine.package}.train --run_dir {shlex.quote(str(self.folder))} --train.resume auto"
        )
        return code

    def _plot(self) -> list[Row]:
        rows = read_metrics(self.folder / "metrics.jsonl")
        path = self.folder / "loss.png"
        if attempt(lambda: plot_loss(rows, path, title=self.folder.name), path):
            step = int(rows[-1]["step"]) if rows else 0
            for tracker in self.trackers:
                self.writes.close(f"{tracker.name}, {path.name}", partial(tracker.image, step, path))
        return rows

    def _finish(self) -> None:
        rows = self._plot()
        saved = self.checkpoints.retain()
        best, last = checkpoints.best_checkpoint(saved), saved[-1]
        rates = [row["tokens_per_second"] for row in rows if "tokens_per_second" in row]
        latest = {name: value for row in rows for name, value in row.items()}  # the last value of each metric

        def figure(name: str, form: str) -> str:
            return format(latest[name], form) if name in latest else "–"

        table = [
            ("steps", f"{last.step:,} ({figure('tokens', ',')} tokens)"),
            ("training loss", figure("loss", ".4f")),
            ("validation loss", figure("valid_loss", ".4f")),
            ("perplexity", figure("valid_perplexity", ".2f")),
            ("bits per byte", figure("valid_bits_per_byte", ".4f")),
            ("tokens per second", f"{float(np.median(rates)):,.0f} (median)" if rates else "–"),
            ("best checkpoint", f"{best.folder}" + (f" (loss {best.valid_loss:.4f})" if best.valid_loss else "")),
            ("loss curve", str(self.folder / "loss.png")),
        ]
        self.writes.close("standard output", lambda: self.progress.summary(table))


def _due(done: int, every: int, steps: int) -> bool:
    return done == steps or (every > 0 and done % every == 0)
