"""Zero-shot prompt weighting: which templates deserve weight, without a single label.

ZPE of Allingham et al. 2023 (arXiv 2302.06235).

Letters: T templates, n images, C classes, D width of the common space.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isthmus.auditing.measures.templates_alone import check_class_weights, ensemble_weights
from isthmus.errors import InputError


@dataclass(frozen=True)
class PromptWeighting:
    """Weights of templates and the classifier that they make.

    Attributes:
        scores: The score of each template (T,), float64, in logits; larger is better.
        weights: Their softmax (T,), float64.
        class_weights: The weighted ensemble's class weights (C, D), of length 1.
    """

    scores: Tensor
    weights: Tensor
    class_weights: Tensor


@torch.no_grad()
def zero_shot_prompt_weights(
    class_weights: Tensor, features: Tensor, scale: float, *, reference: Tensor | None = None
) -> PromptWeighting:
    """Weights templates by how large the largest logit is that they give an image (ZPE).

    The logit of image x, template t and class c is l[t, c](x) = scale x . w[t, c]. The largest one
    over classes tells how well a template fits, but is biased twofold: some words are near all
    images that a model was trained on, and some are near all images of this data set. Expected
    logits over either kind are therefore taken off before:

        E_test[t, c] = mean of l[t, c](x) over these images
        E_pretrain[t, c] = mean of l[t, c](x) over images like those of pretraining
        l'[t, c](x) = l[t, c](x) - (E_pretrain[t, c] + E_test[t, c]) / 2
        score[t] = mean over x of max over c of l'[t, c](x)
        weight[t] = exp(score[t]) / sum of exp(score) over templates

    Without `reference`, E_test alone is taken off, whole, as in the authors' ablation. Equations
    are as in the authors' own code (google/uncertainty-baselines, experimental/multimodal); it
    averages logits by these weights, which leaves the mean class vector at the length it has.
    Here it is brought to length 1, as `ZeroShotClassifier` does, so that equal weights give that
    classifier. The authors' other way, the scores themselves as weights, is left out: a score of
    few images may be negative.

    Args:
        class_weights: Class weights (T, C, D) of each template alone, of length 1.
        features: Features (n, D) of the images to be classified, of length 1.
        scale: The factor on similarities, exp(logit_scale). The larger it is, the nearer weights
            come to one template alone.
        reference: Features (m, D) of images like those of pretraining, if there are any; the
            authors take 20,000.

    Raises:
        InputError: If shapes do not match, or there is no image.

    Example:
        >>> fits = torch.eye(2)  # of two classes; the other template calls both by one name
        >>> weights = torch.stack([fits, fits[[0, 0]]])
        >>> zero_shot_prompt_weights(weights, torch.eye(2), 10.0).weights
        tensor([0.9933, 0.0067], dtype=torch.float64)
    """
    check_class_weights(class_weights, features)
    if reference is not None:
        check_class_weights(class_weights, reference)
    if not scale > 0:
        raise InputError(f"got the scale {scale}: expected more than 0, as exp(logit_scale) is")
    each, images = class_weights.double(), features.double()
    # Logits are linear in features, so their mean is the logit of the mean
    expected = images.mean(dim=0)
    if reference is not None:
        expected = (expected + reference.double().mean(dim=0)) / 2
    centred = images - expected
    scores = torch.stack([(scale * centred @ one.T).amax(dim=1).mean() for one in each])
    weights = scores.softmax(dim=0)
    return PromptWeighting(scores, weights, ensemble_weights(class_weights, weights))
