"""`python -m jaxlm.harness RUN --tasks TASK ...`, or torchlm: results of a trained model on lm-eval's tasks."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmcore.config import Device, Precision, cli
from lmcore.errors import UserError
from lmcore.files import check_folder, replace_file

__all__ = ["main"]


def main(argv: Sequence[str] | None, package: str, make_engine: Callable) -> None:
    """Evaluate the model that the command line names on tasks, and print lm-eval's table.

    Args:
        argv: command-line arguments; None takes those of the process.
        package: name of the twin.
        make_engine: called with a config, returns an engine.

    Raises:
        UserError: there is no such run or task, or a task's data is unavailable.
    """
    args = cli.parse_arguments(_parser(package), argv)
    if args.batch_size < 1:
        raise UserError(f"--batch_size: found {args.batch_size}, expected at least 1")
    if args.include_path is not None and not Path(args.include_path).is_dir():
        raise UserError(f"--include_path: found no folder {args.include_path!r}, expected one with task files in YAML")
    if args.output is not None:
        check_folder("--output", Path(args.output).absolute().parent)
    import lm_eval
    from lm_eval.utils import handle_non_serializable, make_table

    from lmcore.harness.adapter import EngineLM
    from lmcore.harness.tasks import open_tasks
    from lmcore.run.checkpoints import find_checkpoint
    from lmcore.run.folder import load_run

    verify = not args.no_verify
    checkpoint = find_checkpoint(Path(args.run), verify=verify)
    checkpoint.check_framework(package.removesuffix("lm"))
    config, tokenizer = load_run(checkpoint, verify)
    tasks = open_tasks(args.tasks, args.include_path)
    train = replace(config.train, precision=args.precision or config.train.precision, device=args.device)
    config = replace(config, train=train)
    with cli.named_as_options("train"):
        engine = make_engine(config)
    engine.restore(checkpoint.state, optimizer=False)
    results = lm_eval.simple_evaluate(
        EngineLM(engine, config, tokenizer, args.batch_size),
        tasks=args.tasks,
        task_manager=tasks,
        num_fewshot=args.num_fewshot,
        limit=args.limit,
        gen_kwargs=args.gen_kwargs,
        log_samples=args.log_samples,
    )
    assert results is not None
    results["config"] |= {"model": f"{package} {checkpoint.folder}", "batch_size": args.batch_size}
    print(f"{checkpoint.folder} (step {checkpoint.step:,}) on {engine.device_name}")
    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))
    if args.output is not None:
        text = json.dumps(results, indent=1, ensure_ascii=False, default=handle_non_serializable)
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        replace_file(Path(args.output), text + "\n")


def _parser(package: str) -> Any:
    parser = cli.command_parser(
        f"python -m {package}.harness",
        "Evaluate a trained model on tasks of lm-eval, the language model evaluation harness, or on tasks of your own.",
        "RUN --tasks TASK ... [--include_path FOLDER] [--output FILE.json]",
    )
    parser.add_argument("run", help="A run folder, for its best checkpoint, or one checkpoint.")
    parser.add_argument("--tasks", type=list[str], required=True, help="Names of tasks or groups.")
    parser.add_argument("--include_path", type=str | None, help="Folder with further tasks, in YAML.")
    parser.add_argument("--num_fewshot", type=int | None, help="Examples before each question; null takes the task's.")
    parser.add_argument("--limit", type=int | None, help="Maximum number of questions of each task; null takes all.")
    parser.add_argument("--gen_kwargs", type=str | None, help="Settings of generation, such as max_gen_toks=64.")
    parser.add_argument("--batch_size", type=int, default=8, help="Sequences at a time.")
    parser.add_argument("--precision", type=Precision | None, help="Dtype of the matmuls; null takes the run's.")
    parser.add_argument(
        "--device", type=Device, default="auto", help="Device to run on; auto takes an accelerator if there is one."
    )
    parser.add_argument("--output", type=str | None, help="Write all results to this JSON file.")
    parser.add_argument("--log_samples", action="store_true", help="Add each question and answer to that file.")
    cli.add_no_verify(parser)
    return parser
