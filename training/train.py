"""Train the demo model: `python -m training.train --run runs/demo`. Started again, it goes on where it stopped.

From nothing it follows the curriculum with a fixed seed; `--from assets/demo-model` continues a released checkpoint.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import multiprocessing
import signal
import time
from pathlib import Path
from typing import Any

import torch

from training.batches import Packed, draw_ahead, take
from training.curriculum import STAGES, levels_of
from training.evaluate import is_right
from training.guidance import Guidance, build_probe
from training.network import build_model, compile_blocks, forward
from training.sight import build_heads, sight_loss, words_of
from training.tokenizer import build_tokenizer


class Score:
    """Running accuracy of whole answers per skill (and language), on cases never seen before."""

    def __init__(self, kept: float = 0.98) -> None:
        self.kept = kept
        self.right: dict[str, float] = {}
        self.asked: dict[str, float] = {}

    def add(self, predicted: torch.Tensor, packed: Packed, wanted: torch.Tensor, tokenizer: Any) -> None:
        """An answer is right when each of its tokens is: what a greedy answer would give, to the letter. Boxes are
        judged by their overlap, read from what is predicted after the wanted digits: near enough to watch.
        """
        wrong = torch.zeros(len(packed.asked))
        exchanges = torch.from_numpy(packed.exchanges)
        wrong.index_add_(0, exchanges, (predicted != wanted).float())
        for number, (exchange, misses) in enumerate(zip(packed.asked, wrong.tolist(), strict=True)):
            if exchange.skill == "where" and misses:
                misses = not is_right(exchange, tokenizer.decode(predicted[exchanges == number][:-1]))
            self.right[exchange.skill] = self.right.get(exchange.skill, 0.0) + (misses == 0)
            self.asked[exchange.skill] = self.asked.get(exchange.skill, 0.0) + 1

    def watch(self, name: str, share: float) -> None:
        self.right[name] = self.right.get(name, 0.0) + share
        self.asked[name] = self.asked.get(name, 0.0) + 1

    def fade(self) -> None:
        for table in (self.right, self.asked):
            for skill in table:
                table[skill] *= self.kept

    def of(self, skill: str) -> float:
        return self.right.get(skill, 0.0) / max(self.asked.get(skill, 0.0), 1e-9) if self.asked.get(skill) else 0.0

    def __str__(self) -> str:
        return " ".join(f"{skill}={self.of(skill):.3f}" for skill in sorted(self.asked))


GUIDANCE_SHARE = 0.3  # at 0.1 the letters of clips were looked at (.12) much later than at 0.3 (.88 after 250 steps)
SIGHT_SHARE = 0.6  # weight of the loss on cells beside the loss on answers


def build_optimizers(model: Any, heads: Any, probe: Any, rate: float) -> dict[str, torch.optim.Optimizer]:
    """Muon for the matrices, which learnt letters in fewer steps than AdamW (measured: loss .63 against .73 after 160);
    AdamW for the rest. Weight decay on matrices only. The query and key norms learn faster: they alone decide how
    sharply a token can look, and a stamp is found only by looking sharply.
    """
    named = list(model.named_parameters())
    sharpness = [p for name, p in named if name.endswith(("q_norm.weight", "k_norm.weight"))]
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    taken = {id(p) for p in (*sharpness, *matrices)}
    others = [p for _, p in named if id(p) not in taken] + list(heads.parameters())
    groups = [
        {"params": others, "speed": 1.0},
        {"params": sharpness, "speed": 4.0},
        {"params": list(probe.parameters()), "speed": 1.0},
    ]
    return {
        "muon": torch.optim.Muon(
            [{"params": matrices, "speed": 1.0}], lr=rate, weight_decay=0.03, adjust_lr_fn="match_rms_adamw"
        ),
        "adamw": torch.optim.AdamW(groups, lr=rate, weight_decay=0.0, betas=(0.9, 0.98), fused=True),
    }


def save(path: Path, modules: dict[str, Any], state: dict[str, Any]) -> None:
    """Written beside and renamed, so that a kill never leaves half a checkpoint."""
    beside = path.with_suffix(".new")
    torch.save({name: module.state_dict() for name, module in modules.items()} | state, beside)
    beside.replace(path)


def learnt_by(folder: Path) -> dict[str, Any]:
    """The state dicts of a run's folder; of a released checkpoint the model's alone."""
    if (folder / "checkpoint.pt").exists():
        state: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True)
        return state
    from transformers import Qwen3VLForConditionalGeneration

    return {"model": Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).state_dict()}


def take_tower(modules: dict[str, Any], other: dict[str, Any]) -> None:
    """A tower that learnt beside, with the heads that ask its cells."""
    tower = {name: weight for name, weight in other["model"].items() if name.startswith("model.visual.")}
    for name in ("model", "average"):
        modules[name].load_state_dict(modules[name].state_dict() | tower)
    if "heads" in other:
        modules["heads"].load_state_dict(other["heads"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="folder of the checkpoint and the log")
    parser.add_argument("--from", dest="source", type=Path, help="a released checkpoint or another run to begin with")
    parser.add_argument("--tower", type=Path, help="another run to take the tower from")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=150, help="steps of linear warm-up after every start")
    parser.add_argument("--minutes", type=float, default=0, help="anneal the rate to nothing in this time and stop")
    parser.add_argument("--stage", type=int, help="begin at this stage of the curriculum")
    parser.add_argument("--still-tower", action="store_true", help="leave the tower as it is: it may learn beside")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    if args.compile:
        compile_blocks()
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    args.run.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, args.seed)
    before = None  # a tower that learns alone, beside a trained decoder, goes on telling it what it knows
    if args.source:
        source = learnt_by(args.source)
        model.load_state_dict(source["model"])
        if args.stage == 0:
            before = copy.deepcopy(model.model.visual).requires_grad_(False).to(args.device)
    model.to(args.device)
    heads = build_heads(model.config.text_config.hidden_size).to(args.device)
    probe = build_probe(model.config.text_config.hidden_size).to(args.device)
    if args.source:
        for name, module in (("heads", heads), ("probe", probe)):
            if name in source:
                module.load_state_dict(source[name])
    words = words_of(tokenizer)
    average = copy.deepcopy(model)
    optimizers = build_optimizers(model, heads, probe, args.rate)
    modules = {"model": model, "average": average, "heads": heads, "probe": probe, **optimizers}
    state: dict[str, Any] = {
        "step": 0,
        "stage": args.stage or 0,
        "stage_step": 0,
        "seconds": 0.0,
        "tokens": 0,
        "answers": 0,
    }
    file = args.run / "checkpoint.pt"
    if file.exists():
        saved = torch.load(file, map_location=args.device, weights_only=True)
        for name, module in modules.items():
            module.load_state_dict(saved[name])
        state = {key: saved[key] for key in state}
        if args.stage is not None and args.stage != state["stage"]:
            state |= {"stage": args.stage, "stage_step": 0}
    if args.tower:
        take_tower(modules, learnt_by(args.tower))
    model.model.visual.requires_grad_(not args.still_tower)
    stage = multiprocessing.get_context("fork").Value("i", state["stage"])

    def plan(step: int) -> tuple[str, Any, int, int, int]:
        now = STAGES[stage.value]
        sights = 0 if args.still_tower else now.sights
        return f"train:{args.seed}", levels_of(stage.value), now.step_tokens, now.batch_tokens, sights

    process, queue = draw_ahead(tokenizer, plan, state["step"])
    log = (args.run / "log.jsonl").open("a")
    began = saved_at = told_at = time.monotonic()
    seconds_before = state["seconds"]
    started_step = state["step"]
    score, loss_shown, told_step = Score(), 0.0, state["step"]
    parameters = list(model.parameters())
    averaged = list(average.parameters())
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    while not stopping:
        minutes = (time.monotonic() - began) / 60
        if args.minutes and minutes > args.minutes:
            break
        rate = args.rate * min(1, (state["step"] - started_step + 1) / args.warmup)
        if args.minutes:
            rate *= 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1, minutes / args.minutes)))
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate * group["speed"]
        drawn = take(process, queue)
        if drawn is None:
            break
        step_batches, sights = drawn
        if sights is not None:
            loss, told = sight_loss(model, heads, words, sights, dtype, args.device, before)
            (loss * SIGHT_SHARE).backward()
            for name, share in told.items():
                score.watch(name, share)
        total = sum(int((packed.targets >= 0).sum()) for packed in step_batches)
        for packed in step_batches:
            batch = packed.batch(args.device)
            guidance = Guidance(probe, model.model.language_model.embed_tokens.weight, batch)
            logits = forward(model, batch, dtype, guidance=guidance)
            wanted = batch.targets[batch.targets >= 0]
            loss = torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="sum") / total
            (loss + GUIDANCE_SHARE / len(step_batches) * guidance.loss()).backward()
            for name, share in guidance.found.items():
                score.watch(name, share)
            loss_shown += float(loss.detach())
            score.add(logits.detach().argmax(-1).cpu(), packed, wanted.cpu(), tokenizer)
            state["tokens"] += int((packed.segments >= 0).sum())
            state["answers"] += len(packed.asked)
        score.fade()
        torch.nn.utils.clip_grad_norm_([*parameters, *heads.parameters()], 1.0)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        state["step"] += 1
        state["stage_step"] += 1
        with torch.no_grad():
            kept = min(0.998, (state["step"] + 1) / (state["step"] + 20))
            torch._foreach_lerp_(averaged, parameters, 1 - kept)
        now = STAGES[state["stage"]]
        measured = min(state["stage_step"], state["step"] - started_step) > 100  # the score begins anew at every start
        learnt = bool(now.until) and all(score.of(skill) >= wish for skill, wish in now.until.items())
        over = state["stage_step"] >= now.steps or (measured and learnt)
        if before is None and over and state["stage"] + 1 < len(STAGES):
            state |= {"stage": state["stage"] + 1, "stage_step": 0}
            stage.value = state["stage"]
            print(f"--- stage {state['stage']}", flush=True)
        state["seconds"] = seconds_before + time.monotonic() - began
        if state["step"] % 25 == 0:
            speed = (time.monotonic() - told_at) / (state["step"] - told_step)
            loss_shown /= state["step"] - told_step
            where = f"{state['step']} stage {state['stage']} loss {loss_shown:.4f}"
            print(f"{where} rate {rate:.1e} {speed:.2f}s/step {score}", flush=True)
            log.write(
                json.dumps({**state, "loss": loss_shown, **{s: round(score.of(s), 4) for s in score.asked}}) + "\n"
            )
            log.flush()
            loss_shown, told_at, told_step = 0.0, time.monotonic(), state["step"]
        if time.monotonic() - saved_at > 120:
            save(file, modules, state)
            saved_at = time.monotonic()
    save(file, modules, state)
    process.terminate()
    process.join()


if __name__ == "__main__":
    main()
