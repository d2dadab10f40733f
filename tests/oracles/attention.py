"""Attention methods from their papers' formulas, on the whole graph of a reference; one image, one prompt."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.oracles.resnet import ReferenceResNet
from tests.oracles.scores import Score, cosines, direction
from tests.oracles.transformer import Attended, ReferenceViT, Trace


@dataclass
class Question:
    """What is asked about one image.

    Attributes:
        vit, seen: the reference, and what it did with the image.
        texts: embeddings of all prompts.
        score: of the cosines with them.
        prompt: which of the prompts is mapped.
        blocks: indices of those that are read.
    """

    vit: ReferenceViT | ReferenceResNet
    seen: Trace
    texts: Tensor
    score: Score
    prompt: int
    blocks: Sequence[int]

    def gradient(self, of: Tensor) -> Tensor:
        """The score's, through the whole model."""
        score = self.score(cosines(self.seen.features, self.texts), self.prompt)
        return torch.autograd.grad(score, of, retain_graph=True)[0]

    @property
    def direction(self) -> Tensor:
        return direction(self.seen.features, self.texts, self.score, self.prompt)

    def similarity(self, embedding: Tensor) -> Tensor:
        return self.direction @ embedding / embedding.norm()

    def map(self, values: Sequence[Tensor] | Tensor) -> Tensor:
        """One value a patch, row by row."""
        return torch.stack(list(values)).detach().reshape(self.vit.grid)

    def read(self, relevance: Tensor, pool: Tensor | None) -> Tensor:
        """The patches of the row of ``relevance`` that the embedding is made of."""
        if pool is not None:
            row = pool @ relevance
        elif self.vit.pools_by_mean:
            row = relevance[1:].mean(dim=0)
        else:
            row = relevance[0]
        return self.map(row[1:])


def gae(asked: Question) -> Tensor:
    """Chefer et al. 2021: R <- R + mean_h relu(grad A * A) R."""

    def positive(attention: Attended) -> Tensor:
        gradient = asked.gradient(attention.weights)
        return sum((g * a).relu() for g, a in zip(gradient, attention.weights, strict=True)) / len(gradient)

    relevance = torch.eye(1 + math.prod(asked.vit.grid), dtype=torch.float64)
    for i in asked.blocks:
        relevance = relevance + positive(asked.seen.blocks[i].attention) @ relevance
    return asked.read(relevance, positive(asked.seen.pool)[0] if asked.seen.pool else None)


def rollout(asked: Question) -> Tensor:
    """Abnar & Zuidema 2020: the product of (A + I), rows scaled to 1."""
    relevance = torch.eye(1 + math.prod(asked.vit.grid), dtype=torch.float64)
    for i in asked.blocks:
        step = asked.seen.blocks[i].attention.weights.mean(dim=0) + torch.eye(len(relevance), dtype=torch.float64)
        relevance = (step / step.sum(dim=1, keepdim=True)) @ relevance
    return asked.read(relevance, asked.seen.pool.weights.mean(dim=0)[0] if asked.seen.pool else None)


def legrad(asked: Question) -> Tensor:
    """Bousselham et al. 2024 (LeGrad): relu of the gradient of each block's own similarity, by its attention."""
    total = 0
    for i in asked.blocks:
        block = asked.seen.blocks[i]
        similarity = asked.similarity(asked.vit.embed(block.output.mean(dim=0)))
        (gradient,) = torch.autograd.grad(similarity, block.attention.weights, retain_graph=True)
        total = total + gradient.relu().mean(dim=(0, 1))
    return asked.map(total[1:])


def grad_eclip(asked: Question) -> Tensor:
    """Zhao et al. 2024: relu(lambda_i sum_d w_d v_id) of the attention that the embedding is read from."""
    attention = asked.seen.pool or asked.seen.blocks[asked.blocks[-1]].attention
    query = torch.cat(list(attention.query[:, 0]))
    keys = [torch.cat(list(attention.key[:, i])) for i in range(1, attention.key.shape[1])]
    values = [torch.cat(list(attention.value[:, i])) for i in range(1, attention.key.shape[1])]
    nearness = torch.stack([query @ key / (query.norm() * key.norm()) for key in keys])
    nearness = (nearness - nearness.min()) / (nearness.max() - nearness.min())
    gradient = asked.gradient(attention.merged)[0]
    return asked.map([(near * (gradient @ value)).relu() for near, value in zip(nearness, values, strict=True)])


def maskclip(asked: Question) -> Tensor:
    """Zhou et al. 2022: the last attention gives each patch its own value."""
    if asked.seen.pool:
        tokens = list(asked.seen.tokens)
    else:
        last = asked.seen.blocks[asked.blocks[-1]]
        values = [torch.cat(list(last.attention.value[:, i])) for i in range(len(last.tokens))]
        pairs = zip(last.tokens, values, strict=True)
        tokens = [asked.vit.after(asked.blocks[-1], token, value) for token, value in pairs]
    return asked.map([asked.similarity(asked.vit.embed(token)) for token in tokens[1:]])


def gem(asked: Question) -> Tensor:
    """Bousselham et al. 2024 (GEM): a path of self-self attention beside the model's own."""
    beside = list(asked.seen.blocks[asked.blocks[0]].tokens)
    for i in asked.blocks:
        attention, normed = asked.seen.blocks[i].attention, asked.seen.blocks[i].normed
        tau = sum(token.norm() for token in normed) / len(normed) / math.sqrt(attention.query.shape[-1])
        heads = [
            sum(
                _self_self(like[h], attention.value[h], tau)
                for like in (attention.query, attention.key, attention.value)
            )
            / 3
            for h in range(len(attention.query))
        ]
        merged = torch.cat(heads, dim=1)
        beside = [x + asked.vit.attention_branch(i, gathered) for x, gathered in zip(beside, merged, strict=True)]
    return asked.map([asked.similarity(asked.vit.embed(token)) for token in beside[1:]])


def _self_self(like: Tensor, value: Tensor, tau: Tensor) -> Tensor:
    unit = torch.stack([p / p.norm() for p in like])
    moved = torch.stack([_softmax(tau * unit @ p) @ unit for p in unit])
    unit = torch.stack([p / p.norm() for p in moved])
    return torch.stack([_softmax(tau * unit @ p) @ value for p in unit])


def _softmax(scores: Tensor) -> Tensor:
    return scores.exp() / scores.exp().sum()


def decomposition_terms(asked: Question) -> dict[str, Tensor]:
    """Gandelsman et al. 2024: what each part adds to the score, the final norm's statistics held fixed.

    ``patches`` has one value a patch, the others one value.
    """
    vit, seen = asked.vit, asked.seen
    final = seen.blocks[-1].output[0]
    spread = (((final - final.mean()) ** 2).mean() + 1e-5).sqrt()

    def adds(part: Tensor) -> Tensor:
        normed = (part - part.mean()) / spread * vit.w["ln_post.weight"]
        return asked.direction @ (normed @ vit.w["proj"]) / seen.features.norm()

    terms = {
        "patches": torch.zeros(math.prod(vit.grid), dtype=torch.float64),
        "class token": torch.zeros((), dtype=torch.float64),
        "embedding": adds(seen.blocks[0].tokens[0]),
        "mlps": torch.zeros((), dtype=torch.float64),
        "biases": asked.direction @ (vit.w["ln_post.bias"] @ vit.w["proj"]) / seen.features.norm(),
    }
    for i in asked.blocks:
        attention = seen.blocks[i].attention
        nothing = vit.attention_branch(i, torch.zeros_like(attention.merged[0]))  # the bias of the output projection
        terms["biases"] = terms["biases"] + adds(nothing)
        for token in range(attention.key.shape[1]):
            given = torch.cat([a[0, token] * v[token] for a, v in zip(attention.weights, attention.value, strict=True)])
            term = adds(vit.attention_branch(i, given) - nothing)
            if token:
                terms["patches"][token - 1] += term.detach()
            else:
                terms["class token"] = terms["class token"] + term
        mixed = seen.blocks[i].tokens[0] + vit.attention_branch(i, attention.merged[0])
        terms["mlps"] = terms["mlps"] + adds(vit.mlp_branch(i, mixed))
    return {name: term.detach() for name, term in terms.items()}


def decomposition(asked: Question) -> Tensor:
    return asked.map(decomposition_terms(asked)["patches"])


ORACLES: dict[str, Callable[[Question], Tensor]] = {
    oracle.__name__: oracle for oracle in (gae, rollout, legrad, grad_eclip, decomposition, maskclip, gem)
}
