"""Attention methods from the formulas of their papers, on the complete graph of a reference model.

One image and one prompt at a time.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.oracles.resnet import ReferenceResNet
from tests.oracles.scores import Score, compute_cosines, compute_direction
from tests.oracles.transformer import AttentionTrace, ReferenceViT, Trace


@dataclass(frozen=True, eq=False, repr=False)
class Inputs:
    """Inputs of an oracle: one image and one prompt.

    Attributes:
        model: the reference model.
        trace: its intermediate results for the image.
        texts: embeddings of all prompts.
        score: converts the cosines with all prompts to the target score of one.
        prompt: index of the mapped prompt.
        blocks: indices of the blocks that are read.
    """

    model: ReferenceViT | ReferenceResNet
    trace: Trace
    texts: Tensor
    score: Score
    prompt: int
    blocks: Sequence[int]

    def gradient(self, tensor: Tensor) -> Tensor:
        """Differentiate the score by ``tensor``, through the complete model."""
        score = self.score(compute_cosines(self.trace.features, self.texts), self.prompt)
        return torch.autograd.grad(score, tensor, retain_graph=True)[0]

    @property
    def direction(self) -> Tensor:
        return self.direction_of(self.prompt)

    def direction_of(self, prompt: int) -> Tensor:
        return compute_direction(self.trace.features, self.texts, self.score, prompt)

    def similarity(self, embedding: Tensor) -> Tensor:
        return self.direction @ embedding / embedding.norm()

    def to_map(self, values: Sequence[Tensor] | Tensor) -> Tensor:
        """Lay out one value per patch, row by row."""
        return torch.stack(list(values)).detach().reshape(self.model.grid)

    def read_row(self, relevance: Tensor, pool: Tensor | None) -> Tensor:
        """Map the patches in the row of ``relevance`` from which the embedding is read."""
        if pool is not None:
            row = pool @ relevance
        elif self.model.pools_by_mean:
            row = relevance[1:].mean(dim=0)
        else:
            row = relevance[0]
        return self.to_map(row[1:])


def gae(inputs: Inputs) -> Tensor:
    """Chefer et al. 2021: R <- R + mean_h relu(grad A * A) R; without the identity if a mean is read."""

    def positive_part(attention: AttentionTrace) -> Tensor:
        gradient = inputs.gradient(attention.weights)
        return sum((g * a).relu() for g, a in zip(gradient, attention.weights, strict=True)) / len(gradient)

    relevance = torch.eye(1 + math.prod(inputs.model.grid), dtype=torch.float64)
    for i in inputs.blocks:
        relevance = relevance + positive_part(inputs.trace.blocks[i].attention) @ relevance
    if inputs.model.pools_by_mean:
        relevance = relevance - torch.eye(len(relevance), dtype=torch.float64)
    return inputs.read_row(relevance, positive_part(inputs.trace.pool)[0] if inputs.trace.pool else None)


def rollout(inputs: Inputs) -> Tensor:
    """Abnar & Zuidema 2020: the product of (A + I), rows scaled to 1."""
    relevance = torch.eye(1 + math.prod(inputs.model.grid), dtype=torch.float64)
    for i in inputs.blocks:
        step = inputs.trace.blocks[i].attention.weights.mean(dim=0) + torch.eye(len(relevance), dtype=torch.float64)
        relevance = (step / step.sum(dim=1, keepdim=True)) @ relevance
    return inputs.read_row(relevance, inputs.trace.pool.weights.mean(dim=0)[0] if inputs.trace.pool else None)


def legrad(inputs: Inputs) -> Tensor:
    """Bousselham et al. 2024 (LeGrad): relu of the gradient of each block's own similarity, by its attention.

    In towers that pool by attention: of the similarity of each block's pooled output, by the attention of the pool.
    """
    total = 0
    for i in inputs.blocks:
        block = inputs.trace.blocks[i]
        if inputs.model.pools_by_attention:
            pool = inputs.model.attend_in_pool(block.output)
            similarity = inputs.similarity(inputs.model.head(inputs.model.out(pool.merged[0], "attn_pool.attn")))
            (gradient,) = torch.autograd.grad(similarity, pool.weights, retain_graph=True)
            total = total + sum(head[0].relu() for head in gradient) / len(gradient)
            continue
        similarity = inputs.similarity(inputs.model.embed(block.output.mean(dim=0)))
        (gradient,) = torch.autograd.grad(similarity, block.attention.weights, retain_graph=True)
        total = total + gradient.relu().mean(dim=(0, 1))
    return inputs.to_map(total[1:])


def grad_eclip(inputs: Inputs) -> Tensor:
    """Zhao et al. 2024: relu(lambda_i sum_d w_d v_id) of the attention that the embedding is read from."""
    attention = inputs.trace.pool or inputs.trace.blocks[inputs.blocks[-1]].attention
    query = torch.cat(list(attention.query[:, 0]))
    keys = [torch.cat(list(attention.key[:, i])) for i in range(1, attention.key.shape[1])]
    values = [torch.cat(list(attention.value[:, i])) for i in range(1, attention.key.shape[1])]
    closeness = torch.stack([query @ key / (query.norm() * key.norm()) for key in keys])
    closeness = (closeness - closeness.min()) / (closeness.max() - closeness.min())
    gradient = inputs.gradient(attention.merged)[0]
    return inputs.to_map([(near * (gradient @ value)).relu() for near, value in zip(closeness, values, strict=True)])


def maskclip(inputs: Inputs) -> Tensor:
    """Zhou et al. 2022: each patch attends only to itself in the last attention."""
    if inputs.trace.pool:
        tokens = list(inputs.trace.tokens)
    else:
        last = inputs.trace.blocks[inputs.blocks[-1]]
        values = [torch.cat(list(last.attention.value[:, i])) for i in range(len(last.tokens))]
        pairs = zip(last.tokens, values, strict=True)
        tokens = [inputs.model.update(inputs.blocks[-1], token, value) for token, value in pairs]
    return inputs.to_map([inputs.similarity(inputs.model.embed(token)) for token in tokens[1:]])


def gem(inputs: Inputs) -> Tensor:
    """Bousselham et al. 2024 (GEM): a second path of self-self attention."""
    path = list(inputs.trace.blocks[inputs.blocks[0]].tokens)
    for i in inputs.blocks:
        attention, normed = inputs.trace.blocks[i].attention, inputs.trace.blocks[i].normed
        tau = sum(token.norm() for token in normed) / len(normed) / math.sqrt(attention.query.shape[-1])
        heads = [
            sum(
                _attend_to_similar(vectors[h], attention.value[h], tau)
                for vectors in (attention.query, attention.key, attention.value)
            )
            / 3
            for h in range(len(attention.query))
        ]
        merged = torch.cat(heads, dim=1)
        path = [x + inputs.model.attention_branch(i, output) for x, output in zip(path, merged, strict=True)]
    return inputs.to_map([inputs.similarity(inputs.model.embed(token)) for token in path[1:]])


def _attend_to_similar(vectors: Tensor, value: Tensor, tau: Tensor) -> Tensor:
    unit = torch.stack([p / p.norm() for p in vectors])
    moved = torch.stack([_softmax(tau * unit @ p) @ unit for p in unit])
    unit = torch.stack([p / p.norm() for p in moved])
    return torch.stack([_softmax(tau * unit @ p) @ value for p in unit])


def _softmax(scores: Tensor) -> Tensor:
    return scores.exp() / scores.exp().sum()


def clip_surgery(inputs: Inputs) -> Tensor:
    """Li et al. 2023: a second path of value-value attention; minus the mean over the prompts, channel by channel."""
    path = list(inputs.trace.blocks[inputs.blocks[0]].tokens)
    for i in inputs.blocks:
        values = inputs.trace.blocks[i].attention.value
        scale = math.sqrt(values.shape[-1])
        heads = [torch.stack([_softmax(each @ v / scale) @ each for v in each]) for each in values]
        merged = torch.cat(heads, dim=1)
        path = [x + inputs.model.attention_branch(i, output) for x, output in zip(path, merged, strict=True)]
    unit = inputs.trace.features / inputs.trace.features.norm()
    directions = [inputs.direction_of(q) for q in range(len(inputs.texts))]
    odds = _softmax(torch.stack([2 * unit @ direction for direction in directions]))
    weights = odds / (sum(odds) / len(odds))

    def evidence(token: Tensor) -> Tensor:
        embedding = inputs.model.embed(token)
        features = [
            weight * (embedding / embedding.norm()) * direction
            for weight, direction in zip(weights, directions, strict=True)
        ]
        return (features[inputs.prompt] - sum(features) / len(features)).sum()

    return inputs.to_map([evidence(token) for token in path[1:]])


def decomposition_terms(inputs: Inputs) -> dict[str, Tensor]:
    """Gandelsman et al. 2024: what each part adds to the score, with the final norm's statistics held fixed.

    Returns:
        One value per patch under ``patches``, and single values of the other parts.
    """
    model, trace = inputs.model, inputs.trace
    final = trace.blocks[-1].output[0]
    spread = (((final - final.mean()) ** 2).mean() + 1e-5).sqrt()

    def contribution(part: Tensor) -> Tensor:
        normed = (part - part.mean()) / spread * model.w["ln_post.weight"]
        return inputs.direction @ (normed @ model.w["proj"]) / trace.features.norm()

    terms = {
        "patches": torch.zeros(math.prod(model.grid), dtype=torch.float64),
        "class token": torch.zeros((), dtype=torch.float64),
        "embedding": contribution(trace.blocks[0].tokens[0]),
        "mlps": torch.zeros((), dtype=torch.float64),
        "biases": inputs.direction @ (model.w["ln_post.bias"] @ model.w["proj"]) / trace.features.norm(),
    }
    for i in inputs.blocks:
        attention = trace.blocks[i].attention
        bias = model.attention_branch(i, torch.zeros_like(attention.merged[0]))  # of the output projection
        terms["biases"] = terms["biases"] + contribution(bias)
        for token in range(attention.key.shape[1]):
            heads = torch.cat([a[0, token] * v[token] for a, v in zip(attention.weights, attention.value, strict=True)])
            term = contribution(model.attention_branch(i, heads) - bias)
            if token:
                terms["patches"][token - 1] += term.detach()
            else:
                terms["class token"] = terms["class token"] + term
        mixed = trace.blocks[i].tokens[0] + model.attention_branch(i, attention.merged[0])
        terms["mlps"] = terms["mlps"] + contribution(model.mlp_branch(i, mixed))
    return {name: term.detach() for name, term in terms.items()}


def decomposition(inputs: Inputs) -> Tensor:
    return inputs.to_map(decomposition_terms(inputs)["patches"])


ORACLES: dict[str, Callable[[Inputs], Tensor]] = {
    oracle.__name__: oracle for oracle in (gae, rollout, legrad, grad_eclip, decomposition, maskclip, clip_surgery, gem)
}
