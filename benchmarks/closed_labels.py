"""A thousand closed answers scored as one token tree, beside one forward pass for each.

    python benchmarks/closed_labels.py [--quick] [--threads 2] [--labels 1000]

The same SmolLM2-135M with the same gated cross-attention blocks (as in `decode.py`, gates open)
scores labels of one to five tokens behind a prompt with an image. Visual tokens are given to all,
so no encoder is timed. Four ways, in turn:

    ours            the engine: prompt once, then the labels' token tree in few passes
    one by one      the whole text, prompt and label, in a forward pass of its own
    openflamingo    the prompt once; then for each label, one token after the other on a copy of its
                    states, and log-probabilities over the vocabulary of prompt and label, which is
                    what `get_rank_classifications` of OpenFlamingo 2.0.1's evaluation does
    openflamingo+   the same with all tokens of a label in one pass, which theirs does not do

The slow ways are timed on a sample of the labels. Asserted: equal log-probabilities to 1e-3.

    ratio closed_labels                    ours over one by one, labels a second
    ratio closed_labels_openflamingo       ours over OpenFlamingo's
    ratio closed_labels_openflamingo_plus  ours over OpenFlamingo's with whole labels

The copy of the states is made by views, not by copying, so that theirs is not charged for what
current caches do to states that are used twice. Without open-flamingo 2.0.1 (`pip install --no-deps
open-flamingo==2.0.1 einops einops-exts`) its two ways are left out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import openflamingo
import torch
from decode import EVERY, GATE, VISUAL_TOKENS, VISUAL_WIDTH, ours
from torch import Tensor

import isthmus as im
from isthmus.generation.engine import Engine
from isthmus.generation.prefix import fork
from isthmus.generation.rows import Encoded, Rows, symbols_of
from isthmus.generation.score import Tree, score_trees, tree_of
from isthmus.model.backbones.states import as_states, states_in

TEXT = "<image>Question: What is in the picture? Answer:"
ADJECTIVES = [
    "red",
    "green",
    "old",
    "small",
    "wooden",
    "striped",
    "wild",
    "golden",
    "round",
    "broken",
]
NOUNS = [
    "apple",
    "bicycle",
    "castle",
    "dolphin",
    "elephant",
    "fountain",
    "guitar",
    "hammer",
    "island",
    "jacket",
    "kettle",
    "lantern",
    "mushroom",
    "notebook",
    "orchid",
    "piano",
    "quilt",
    "rooster",
    "sandwich",
    "telescope",
    "umbrella",
    "violin",
    "waterfall",
    "xylophone",
    "yacht",
    "zebra",
]


def labels(count: int) -> list[str]:
    """Names, with one adjective or two before most of them, each a text of its own."""
    named = [f" {n}" for n in NOUNS]
    named += [f" {a} {n}" for a in ADJECTIVES for n in NOUNS]
    named += [f" {a} {b} {n}" for a in ADJECTIVES for b in ADJECTIVES if a != b for n in NOUNS]
    return named[:count]


def copy_blocks(model: im.VisionLanguageModel, other: Any) -> None:
    """Our gated blocks' weights into OpenFlamingo's."""
    with torch.no_grad():
        tokens: Any = model.special_tokens
        embedding = other.get_input_embeddings().weight
        embedding[-2:] = tokens.input_rows
        tokens.output_rows.copy_(embedding[-1:])
        blocks = [b for b in other.gated_cross_attn_layers if b is not None]
        for their, mine in zip(blocks, model.fusion.blocks.values(), strict=True):
            block: Any = mine
            their.attn.norm.load_state_dict(block.norm.state_dict())
            their.attn.to_q.load_state_dict(block.attention.query_projection.state_dict())
            their.attn.to_kv.load_state_dict(block.attention.context_projection.state_dict())
            their.attn.to_out.load_state_dict(block.attention.out_projection.state_dict())
            their.ff.load_state_dict(block.ffw.state_dict())


class Ways:
    """The four ways to score labels behind one prompt."""

    def __init__(self, model: im.VisionLanguageModel, other: Any, count: int) -> None:
        self.model, self.other = model, other
        self.engine = Engine(model)
        self.visual = torch.randn(1, VISUAL_TOKENS, VISUAL_WIDTH)
        self.ids = torch.tensor([model.encode_text(TEXT, 1)])
        self.tokens = [model.special_tokens.encode(label) for label in labels(count)]

    def tree(self, tokens: list[list[int]]) -> list[float]:
        """Ours."""
        ids, layouts = self.ids[0].tolist(), (self.model.layout,)
        symbols = symbols_of(self.model, ids, ("image",), layouts)
        prompt = Encoded(tuple(ids), symbols, ("image",), layouts)
        rows = Rows(self.model, [prompt], {"image": self.visual[0]})
        tree: Tree = tree_of(tokens)
        return score_trees(rows, rows.prefill(), [tree])[0]

    def one_by_one(self, tokens: list[list[int]]) -> list[float]:
        """The whole text for each label."""
        start = self.ids.shape[1]
        scores = []
        for label in tokens:
            ids = torch.cat([self.ids, torch.tensor([label])], dim=1)
            batch = im.Batch(input_ids=ids, attention_mask=torch.ones_like(ids), visual=self.visual)
            known = self.model(batch, last=len(label) + 1).logits[0, :-1].log_softmax(dim=-1)
            scores.append(float(known.gather(1, ids[0, start:, None]).sum()))
        return scores

    def flamingo(self, tokens: list[list[int]], *, whole: bool) -> list[float]:
        """OpenFlamingo's model on the prompt's states."""
        other = self.other
        openflamingo.show(other, self.visual)
        context = other(
            input_ids=self.ids, attention_mask=torch.ones_like(self.ids), use_cache=True
        )
        scores = []
        for label in tokens:
            states = fork(states_in(context), self.ids.shape[1])
            logits: list[Tensor] = [context.logits]
            runs = [label] if whole else [[token] for token in label]
            length = self.ids.shape[1]
            for run in runs:
                length += len(run)
                out = other(
                    input_ids=torch.tensor([run]),
                    attention_mask=torch.ones(1, length, dtype=torch.long),
                    **as_states(other, states),
                    use_cache=True,
                )
                states = states_in(out)
                logits.append(out.logits)
            known = torch.cat(logits, dim=1).log_softmax(dim=-1)  # of prompt and label, as theirs
            behind = known[0, self.ids.shape[1] - 1 : -1]
            scores.append(float(behind.gather(1, torch.tensor(label)[:, None]).sum()))
        other.clear_conditioned_layers()
        return scores


def seconds(way: Callable[[list[list[int]]], list[float]], tokens: list[list[int]]) -> float:
    """Seconds for one label."""
    started = time.perf_counter()
    way(tokens)
    return (time.perf_counter() - started) / len(tokens)


@torch.inference_mode()
def main() -> None:
    """Prints a table and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--labels", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    repeats, sample, count = (1, 8, 200) if options.quick else (5, 30, options.labels)
    model = ours().eval()
    other: Any = None
    if openflamingo.is_installed():
        other = openflamingo.model_with_blocks(model, every=EVERY, width=VISUAL_WIDTH, gate=GATE)
        copy_blocks(model, other)
    work = Ways(model, other, count)
    some = work.tokens[:: max(1, count // sample)][:sample]
    slow: dict[str, Callable[[list[list[int]]], list[float]]] = {"one by one": work.one_by_one}
    if other is not None:
        slow["openflamingo"] = lambda t: work.flamingo(t, whole=False)
        slow["openflamingo+"] = lambda t: work.flamingo(t, whole=True)
    expected = work.tree(some)
    for name, way in slow.items():
        worst = max(abs(a - b) for a, b in zip(way(some), expected, strict=True))
        assert worst <= 1e-3, f"{name}: log-probabilities differ by {worst}"
        print(f"{name}: log-probabilities equal to {worst:.0e}")
    work.tree(work.tokens)
    times: dict[str, list[float]] = {name: [] for name in ("ours", *slow)}
    for _ in range(repeats):
        times["ours"].append(seconds(work.tree, work.tokens))
        for name, way in slow.items():
            times[name].append(seconds(way, some))
    nodes = len(tree_of(work.tokens).tokens)
    print(f"{count} labels, {sum(map(len, work.tokens))} tokens, {nodes} of them in the tree")
    print(f"{'way':<16}{'ms a label':>12}{'min':>10}{'max':>10}")
    for name, values in times.items():
        median, low, high = (1e3 * f(values) for f in (statistics.median, min, max))
        print(f"{name:<16}{median:>12.2f}{low:>10.2f}{high:>10.2f}")
    for name, key in (
        ("one by one", "closed_labels"),
        ("openflamingo", "closed_labels_openflamingo"),
        ("openflamingo+", "closed_labels_openflamingo_plus"),
    ):
        if name not in times:
            continue
        each = [b / a for a, b in zip(times["ours"], times[name], strict=True)]
        print(f"# {key}: {min(each):.1f} to {max(each):.1f} over {repeats} turns")
        print(f"ratio {key} {statistics.median(each):.2f}")


if __name__ == "__main__":
    main()
