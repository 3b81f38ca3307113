"""Independent float64 NumPy implementations that the JAX code is tested against.

Written from the papers' equations with plain loops; nothing here imports pit_jax.
"""

from __future__ import annotations

import math

import numpy as np

# --- probabilities -------------------------------------------------------------------------------


def log_softmax(logits):
    """Log-probabilities along the last dim."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def log_sigmoid(x):
    """`log σ(x)` of one number."""
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def token_log_probs(logits, tokens, temperature=1.0):
    """Log-probabilities of tokens [B, T] and entropies [B, T]."""
    log_p = log_softmax(np.asarray(logits, np.float64) / temperature)
    picked, entropy = np.zeros(tokens.shape), np.zeros(tokens.shape)
    for b, t in np.ndindex(tokens.shape):
        picked[b, t] = log_p[b, t, tokens[b, t]]
        entropy[b, t] = -sum(math.exp(lp) * lp for lp in log_p[b, t])
    return picked, entropy


def top_k_set(logits, k):
    """The k likeliest tokens of one distribution without ties."""
    return set(sorted(range(len(logits)), key=lambda v: -logits[v])[:k])


def top_p_set(logits, p):
    """The smallest set of likeliest tokens whose probability reaches p."""
    probability = np.exp(log_softmax(logits))
    kept, total = set(), 0.0
    for v in sorted(range(len(logits)), key=lambda v: -logits[v]):
        kept.add(v)
        total += probability[v]
        if total >= p:
            break
    return kept


# --- the network ---------------------------------------------------------------------------------


def rms_norm(x, scale, epsilon):
    """`x / rms(x) * scale` over the last dim (Zhang and Sennrich, 2019)."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * scale


def rotate(vector, position, theta):
    """Rotary position of one head: pair (i, i + E/2) as a complex number (Su et al., 2021)."""
    half = len(vector) // 2
    out = np.zeros(len(vector))
    for i in range(half):
        turn = np.exp(1j * position / theta ** (i / half))
        turned = complex(vector[i], vector[i + half]) * turn
        out[i], out[i + half] = turned.real, turned.imag
    return out


def silu(x):
    """`x σ(x)`."""
    return x / (1 + np.exp(-x))


def gelu(x):
    """The tanh form of GELU (Hendrycks and Gimpel, 2016)."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def relative_bucket(distance):
    """T5's bucket of a distance into the past, of 32 (Raffel et al., 2020): 0 … 15 have their own,
    then they grow with the logarithm, and the last holds all from 113 on, 128 and beyond too."""
    if distance < 16:
        return distance
    return min(16 + int(16 * math.log(distance / 16) / math.log(128 / 16)), 31)


def attention(q, k, v, mask, scale=None, bias=None):
    """Attention of one example: q [T,H,E], k and v [S,K,E], mask [T,S]; H/K heads share a key.

    `bias` [H, 32] is for each head and bucket of how many steps back a key is among those seen.
    """
    T, H, E = q.shape
    scale = 1 / math.sqrt(E) if scale is None else scale
    group = H // k.shape[1]
    out = np.zeros((T, H, E))
    for t in range(T):
        seen = [s for s in range(k.shape[0]) if mask[t, s]]
        if not seen:
            continue
        for h in range(H):
            scores = np.array([q[t, h] @ k[s, h // group] * scale for s in seen])
            if bias is not None:
                steps_back = reversed(range(len(seen)))
                scores += [bias[h, relative_bucket(distance)] for distance in steps_back]
            weights = np.exp(log_softmax(scores))
            for weight, s in zip(weights, seen, strict=True):
                out[t, h] += weight * v[s, h // group]
    return out


def decoder(params, config, tokens, positions, mask):
    """Hidden states [T, D] of one example; params of pit_jax's Decoder as float64 arrays."""
    x = params["embed"]["embedding"][tokens]
    if config.scale_embeddings:
        x = x * math.sqrt(config.embed_dim)
    stacked = params["layers"]
    for n in range(config.num_layers):
        heads = {
            name: stacked["attention"][name]["kernel"][n] for name in ("query", "key", "value")
        }
        y = rms_norm(x, stacked["attention_norm"]["scale"][n], config.norm_epsilon)
        q, k, v = (np.einsum("td,dhe->the", y, heads[name]) for name in ("query", "key", "value"))
        for projected in (q, k) if config.positions == "rotary" else ():
            for t, h in np.ndindex(projected.shape[:2]):
                projected[t, h] = rotate(projected[t, h], positions[t], config.rope_theta)
        scale = None if config.scale_attention else 1.0
        seen = attention(q, k, v, mask, scale, params.get("relative_bias"))
        x = x + np.einsum("the,hed->td", seen, stacked["attention"]["out"]["kernel"][n])
        y = rms_norm(x, stacked["mlp_norm"]["scale"][n], config.norm_epsilon)
        gate = {"silu": silu, "gelu": gelu}[config.activation]
        mlp = stacked["mlp"]
        hidden = gate(y @ mlp["gate"]["kernel"][n]) * (y @ mlp["up"]["kernel"][n])
        x = x + hidden @ mlp["down"]["kernel"][n]
    return rms_norm(x, params["final_norm"]["scale"], config.norm_epsilon)


def causal(length):
    """Lower triangle, one segment."""
    return [[s <= t for s in range(length)] for t in range(length)]


def logits(params, config, tokens, positions=None, mask=None):
    """Logits [T, V] of one example of pit_jax's LanguageModel; causal and unpadded by default."""
    T = len(tokens)
    positions = range(T) if positions is None else positions
    mask = np.array(causal(T)) if mask is None else mask
    hidden = decoder(params["decoder"], config, np.asarray(tokens), positions, mask)
    if config.tied_embeddings:
        tied = hidden @ params["decoder"]["embed"]["embedding"].T
        return tied / math.sqrt(config.embed_dim) if config.scale_logits else tied
    return hidden @ params["decoder"]["unembed"]["kernel"]


# --- losses --------------------------------------------------------------------------------------


def scalars(params, config, tokens):
    """Scalars [T] of one unpadded example; params of pit_jax's ScalarModel."""
    mask = np.array(causal(len(tokens)))
    hidden = decoder(params["decoder"], config, np.array(tokens), range(len(tokens)), mask)
    return hidden @ params["head"]["kernel"][:, 0]


def gap_loss(wl, ww, ll, lw):
    """Eq. 2 of one example."""
    return -(
        log_sigmoid(wl - ww)
        + log_sigmoid(wl - ll)
        + log_sigmoid(wl - lw)
        + log_sigmoid(ww - lw)
        + log_sigmoid(ll - lw)
    )


def ppo_policy_loss(log_probs, old, advantages, mask, clip):
    """Sum over real tokens of the clipped objective, negated, and the number of clipped tokens."""
    total, clipped = 0.0, 0
    for i in zip(*np.nonzero(mask), strict=True):
        ratio = math.exp(log_probs[i] - old[i])
        bounded = min(max(ratio, 1 - clip), 1 + clip)
        objective = min(advantages[i] * ratio, advantages[i] * bounded)
        clipped += advantages[i] * bounded < advantages[i] * ratio
        total -= objective
    return total, clipped


def ppo_value_loss(values, old, returns, mask, clip):
    """Half the sum over real tokens of the larger squared error, and how many were clipped."""
    total, clipped = 0.0, 0
    for i in zip(*np.nonzero(mask), strict=True):
        bounded = old[i] + min(max(values[i] - old[i], -clip), clip)
        error, bounded_error = (values[i] - returns[i]) ** 2, (bounded - returns[i]) ** 2
        total += 0.5 * max(error, bounded_error)
        clipped += bounded_error > error
    return total, clipped


# --- PPO -----------------------------------------------------------------------------------------


def gae(rewards, values, mask, gamma, lam):
    """`A_t = Σ_l (γλ)^l δ_{t+l}`, `δ_t = r_t + γ V_{t+1} − V_t`; advantages and returns."""
    advantages = np.zeros(np.shape(rewards))
    for b in range(len(rewards)):
        n = int(np.sum(mask[b]))
        value = [*np.asarray(values[b][:n], np.float64), 0.0]
        delta = [rewards[b][t] + gamma * value[t + 1] - value[t] for t in range(n)]
        for t in range(n):
            advantages[b, t] = sum((gamma * lam) ** (u - t) * delta[u] for u in range(t, n))
    return advantages, (advantages + np.asarray(values, np.float64)) * mask


def whiten(x, mask):
    """Mean 0 and variance 1 over real entries; 0 elsewhere."""
    mask = np.asarray(mask, bool)
    real = np.asarray(x, np.float64)[mask]
    out = np.zeros(mask.shape)
    out[mask] = (real - real.mean()) / real.std()
    return out


def token_rewards(k1, scores, mask, beta):
    """`−β k1` on real tokens, the score on the last of them."""
    out = np.zeros(np.shape(k1))
    for b in range(len(k1)):
        n = int(np.sum(mask[b]))
        out[b, :n] = -beta * np.asarray(k1[b][:n], np.float64)
        if n:
            out[b, n - 1] += scores[b]
    return out


def explained_variance(values, returns, mask):
    """`1 − Var(R − V) / Var(R)` over real tokens."""
    mask = np.asarray(mask, bool)
    values, returns = np.asarray(values, np.float64)[mask], np.asarray(returns, np.float64)[mask]
    return 1 - np.var(returns - values) / np.var(returns)


# --- optimizer -----------------------------------------------------------------------------------


def learning_rate(step, peak, warmup, decay, final_fraction):
    """Straight lines: peak/warmup at step 0, peak at `warmup`, the final rate at `decay`."""
    points = [(0.0, peak / warmup), (warmup, peak)] if warmup else [(0.0, peak)]
    if decay:
        points.append((decay, peak * final_fraction))
    return float(np.interp(step, *zip(*points, strict=True)))


class AdamW:
    """AdamW (Loshchilov and Hutter, 2019) of a dict of arrays, gradients clipped together."""

    def __init__(self, b1, b2, epsilon, weight_decay, clip_norm):
        self.b1, self.b2, self.epsilon = b1, b2, epsilon
        self.weight_decay, self.clip_norm = weight_decay, clip_norm
        self.steps, self.first, self.second = 0, {}, {}

    def update(self, params, grads, rate):
        """The parameters after one step."""
        norm = math.sqrt(sum(float((g**2).sum()) for g in grads.values()))
        shrink = min(1.0, self.clip_norm / norm)
        self.steps += 1
        result = {}
        for name, p in params.items():
            g = grads[name] * shrink
            m = self.b1 * self.first.get(name, 0.0) + (1 - self.b1) * g
            v = self.b2 * self.second.get(name, 0.0) + (1 - self.b2) * g**2
            self.first[name], self.second[name] = m, v
            m_hat, v_hat = m / (1 - self.b1**self.steps), v / (1 - self.b2**self.steps)
            step = m_hat / (np.sqrt(v_hat) + self.epsilon) + self.weight_decay * p
            result[name] = p - rate * step
        return result


def numerical_gradient(function, params, width=1e-6):
    """Central differences of a scalar function of a dict of float64 arrays."""
    grads = {}
    for name, value in params.items():
        grads[name] = np.zeros_like(value)
        for i in np.ndindex(value.shape):
            moved = []
            for sign in (1, -1):
                shifted = value.copy()
                shifted[i] += sign * width
                moved.append(function({**params, name: shifted}))
            grads[name][i] = (moved[0] - moved[1]) / (2 * width)
    return grads
