"""What a few labelled images add to a zero-shot classifier.

Each method turns features and labels into a function from features (B, D) of length 1 to logits
(B, K). Towers stay as they are; only a few numbers on top of them are fitted.

Letters: B images, K classes, D width of the common space, S labelled images, M context places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.errors import ConfigError, InputError
from isthmus.model.backbones.text import check_lengths
from isthmus.model.clip.dual_encoder import DualEncoder
from isthmus.model.clip.towers import context_in_place

Scorer = Callable[[Tensor], Tensor]
"""Features (B, D) of length 1 to logits (B, K)."""
Method = Literal["tip-adapter", "tip-adapter-f", "ncm", "linear", "coop"]
METHODS = ("tip-adapter", "tip-adapter-f", "ncm", "linear", "coop")
PUBLISHED_SCALE = 100.0
"""The factor on similarities in Tip-Adapter's formula; alpha is meant beside it."""
ALPHAS = (0.0, 0.3, 0.6, 1.17, 2.0, 4.0, 8.0, 16.0, 32.0)
BETAS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def fit_head(
    method: Method,
    model: DualEncoder,
    labels: Sequence[str],
    zero_shot: Tensor,
    features: Tensor,
    targets: Tensor,
    options: Mapping[str, Any],
) -> Scorer:
    """Fits what a method adds to a zero-shot classifier.

    Args:
        method: One of `METHODS`.
        model: The dual encoder.
        labels: The labels (K,).
        zero_shot: The zero-shot classifier's weights (K, D).
        features: Features (S, D) of labelled images.
        targets: Their classes (S,).
        options: Keyword arguments of the method.

    Raises:
        ConfigError: If an option is unknown.
        InputError: If a class has no image and the method needs one.
    """
    scale, classes = float(model.logit_scale.detach().exp()), len(labels)
    given = dict(options)
    try:
        if method == "ncm":
            return nearest_class_mean(features, targets, classes, scale, **given)
        if method == "linear":
            if given.get("toward") == "text":
                given["toward"] = scale * zero_shot
            return linear_probe(features, targets, classes, **given)
        if method == "coop":
            weights = learned_context(model, labels, features, targets, **given)
            return lambda x: scale * x @ weights.T
        adapting = {k: v for k, v in given.items() if k in ("alpha", "beta")}
        tuning = {k: v for k, v in given.items() if k not in adapting}
        adapter = TipAdapter(zero_shot, features, targets, scale, **adapting)
        if method == "tip-adapter-f":
            return adapter.tune(**tuning)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        names = ", ".join(sorted(options))
        raise ConfigError(f'method "{method}" has no such option; got {names}') from error
    if tuning:
        raise ConfigError(f'method "tip-adapter" is not trained: got {", ".join(tuning)}')
    return adapter


def nearest_class_mean(features: Tensor, targets: Tensor, classes: int, scale: float) -> Scorer:
    """Similarity with the mean of each class's features, of length 1.

    Args:
        features: Features (S, D) of labelled images.
        targets: Their classes (S,).
        classes: Number of classes K.
        scale: Factor on similarities: the model's own temperature.

    Raises:
        InputError: If a class has no image.
    """
    counts = _counts(targets, classes)
    means = torch.zeros(classes, features.shape[1]).index_add_(0, targets, features)
    means = F.normalize(means / counts[:, None], dim=-1)
    return lambda x: scale * x @ means.T


def linear_probe(
    features: Tensor,
    targets: Tensor,
    classes: int,
    *,
    penalty: float = 1e-4,
    toward: Tensor | None = None,
    class_weights: Tensor | None = None,
    most_steps: int = 500,
) -> Scorer:
    """Multinomial logistic regression by L-BFGS (Radford et al. 2021, section 3.2).

    It minimises the weighted mean of cross-entropy + penalty / 2 |W - W0|^2, a convex function.

    Args:
        features: Features (S, D) of labelled images.
        targets: Their classes (S,).
        classes: Number of classes K.
        penalty: Weight of the penalty; features have length 1, so weights are large.
        toward: W0 (K, D), such as the zero-shot classifier's weights times its temperature; None
            for zeros, the plain linear probe.
        class_weights: Weight of each class in the loss (K,); None for 1.
        most_steps: Most iterations.

    Raises:
        InputError: If a class has no image and there is no `toward`.
    """
    if toward is None:
        _counts(targets, classes)
    none = features.new_zeros(classes, features.shape[1])
    start = none if toward is None else toward.detach().clone()
    weight, bias = start.clone().requires_grad_(), features.new_zeros(classes).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=most_steps,
        history_size=20,
        tolerance_grad=1e-7,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(features @ weight.T + bias, targets, weight=class_weights)
        value = value + penalty / 2 * (weight - start).square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    fitted, offset = weight.detach(), bias.detach()
    return lambda x: x @ fitted.T + offset


class TipAdapter:
    """Tip-Adapter (Zhang et al. 2022, arXiv 2111.03930): labelled images as a key-value cache.

    logits = 100 f W + alpha exp(-beta (1 - f K)) V, where K are the images' features and V
    their classes, one-hot. Here they are then brought from the published factor of 100 to the
    model's own temperature, which changes no prediction.

    Args:
        zero_shot: The zero-shot classifier's weights (K, D).
        features: Features (S, D) of labelled images.
        targets: Their classes (S,).
        scale: The model's own factor on similarities.
        alpha: Weight of the cache; with None both are chosen by the likelihood of each labelled
            image under the others, which needs no image held out.
        beta: Sharpness.

    Attributes:
        alpha: Weight of the cache.
        beta: Sharpness.
        keys: The cache's keys (S, D).
    """

    def __init__(
        self,
        zero_shot: Tensor,
        features: Tensor,
        targets: Tensor,
        scale: float,
        *,
        alpha: float | None = 1.17,
        beta: float = 1.0,
    ) -> None:
        self.zero_shot = zero_shot
        self.keys = features.clone()
        self.targets = targets
        self.values = F.one_hot(targets, len(zero_shot)).float()
        self.scale = scale
        self.beta = beta
        self.alpha = 1.17 if alpha is None else alpha
        if alpha is None:
            self.alpha, self.beta = self._search()

    def published(self, features: Tensor) -> Tensor:
        """Logits (B, K) with the published factor of 100."""
        affinity = (-self.beta * (1 - features @ self.keys.T)).exp()
        return PUBLISHED_SCALE * features @ self.zero_shot.T + self.alpha * affinity @ self.values

    def __call__(self, features: Tensor) -> Tensor:
        """Logits (B, K) at the model's own temperature."""
        return self.published(features) * (self.scale / PUBLISHED_SCALE)

    def _search(self) -> tuple[float, float]:
        """The alpha and beta under which labelled images are likeliest from the others."""
        plain = PUBLISHED_SCALE * self.keys @ self.zero_shot.T
        distance = 1 - self.keys @ self.keys.T
        distance.fill_diagonal_(math.inf)  # an image is not its own evidence
        best, chosen = math.inf, (0.0, 1.0)
        for beta in BETAS:
            added = (-beta * distance).exp() @ self.values
            for alpha in ALPHAS:
                logits = (plain + alpha * added) * (self.scale / PUBLISHED_SCALE)
                loss = float(F.cross_entropy(logits, self.targets))
                if loss < best:
                    best, chosen = loss, (alpha, beta)
        return chosen

    def tune(
        self,
        *,
        epochs: int = 20,
        learning_rate: float = 1e-3,
        batch_size: int = 256,
        seed: int = 0,
    ) -> TipAdapter:
        """Tip-Adapter-F: the keys become weights and are trained, a few epochs (section 3.3).

        Args:
            epochs: Passes over the labelled images.
            learning_rate: Of AdamW, falling along a cosine.
            batch_size: Images in a step.
            seed: Of their order.
        """
        keys, features = nn.Parameter(self.keys.clone()), self.keys.clone()
        steps = epochs * math.ceil(len(features) / batch_size)
        optimizer = torch.optim.AdamW([keys], lr=learning_rate, eps=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        generator = torch.Generator().manual_seed(seed)
        self.keys = keys
        with torch.enable_grad():
            for _ in range(epochs):
                order = torch.randperm(len(features), generator=generator)
                for chosen in torch.split(order, batch_size):
                    loss = F.cross_entropy(self.published(features[chosen]), self.targets[chosen])
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    schedule.step()
        self.keys = keys.detach()
        return self


def learned_context(
    model: DualEncoder,
    labels: Sequence[str],
    features: Tensor,
    targets: Tensor,
    *,
    context: str | int = "a photo of a",
    epochs: int = 50,
    learning_rate: float = 2e-3,
    batch_size: int = 32,
    seed: int = 0,
) -> Tensor:
    """CoOp (Zhou et al. 2022, arXiv 2109.01134): the words before a label become free vectors.

    One context is shared by all classes and stands where a prompt's first words would; its
    vectors are trained through the frozen text tower, features of the images being fixed.

    Args:
        model: The dual encoder.
        labels: The labels.
        features: Features (S, D) of labelled images.
        targets: Their classes (S,).
        context: Words to start from, or how many random vectors.
        epochs: Passes over the labelled images.
        learning_rate: Of SGD, falling along a cosine.
        batch_size: Images in a step.
        seed: Of their order, and of random vectors.

    Returns:
        The classifier's weights (K, D), of length 1.

    Raises:
        ConfigError: If the text tower does not tell where its token embedding is.
        PromptError: If a label with the context is longer than the tower's.
    """
    tower, generator = model.text, torch.Generator().manual_seed(seed)
    embedding = tower.token_embedding()
    vectors = _starting_context(model, embedding, context, generator)
    rows = tower.token_ids([f"{label}." for label in labels])
    # Places for the context; which tokens they hold is of no account, but no end token may be
    filler = [rows[0][tower.prefix]] * len(vectors)
    rows = [[*row[: tower.prefix], *filler, *row[tower.prefix :]] for row in rows]
    check_lengths([f"{context} {label}." for label in labels], rows, tower.context_length)
    if tower.pads_left:
        raise ConfigError("a text tower that pads on the left has no fixed place for a context")
    tokens = tower.pad(rows)

    vectors = nn.Parameter(vectors.to(model.device))
    frozen = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD([vectors], lr=learning_rate, momentum=0.9, weight_decay=5e-4)
    steps = epochs * math.ceil(len(features) / batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        with context_in_place(tower, vectors), torch.enable_grad():
            for _ in range(epochs):
                order = torch.randperm(len(features), generator=generator)
                for chosen in torch.split(order, batch_size):
                    scores = model.logits(
                        features[chosen].to(model.device), model.encode_tokens(tokens)
                    )
                    loss = F.cross_entropy(scores, targets[chosen].to(model.device))
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    schedule.step()
            with torch.no_grad():
                return model.encode_tokens(tokens).float().cpu()
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _starting_context(
    model: DualEncoder, embedding: nn.Module, context: str | int, generator: torch.Generator
) -> Tensor:
    """Vectors (M, W) where training starts."""
    tower = model.text
    if isinstance(context, str):
        whole, empty = tower.token_ids([context, ""])
        many = len(whole) - len(empty)
        if many < 1:
            raise InputError(f'the context "{context}" has no tokens: expected words or a number')
        ids = torch.tensor(whole[tower.prefix : tower.prefix + many], device=model.device)
        with torch.no_grad():
            started: Tensor = embedding(ids).float()
        return started
    if context < 1:
        raise InputError(f"context is {context}: expected words, or at least 1 vector")
    with torch.no_grad():
        width = embedding(torch.zeros(1, dtype=torch.long, device=model.device)).shape[-1]
    return 0.02 * torch.randn(context, width, generator=generator)


def _counts(targets: Tensor, classes: int) -> Tensor:
    """How many images each class has.

    Raises:
        InputError: If one has none.
    """
    counts = targets.bincount(minlength=classes)
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        raise InputError(
            f"{len(empty)} of {classes} classes have no labelled image (the first is class "
            f'{empty[0]}): this method needs one of each; "tip-adapter" and "coop" do not'
        )
    return counts
