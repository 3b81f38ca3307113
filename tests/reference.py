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


def layer_norm(x, scale, bias, epsilon):
    """`(x − mean) / σ * scale + bias` over the last dim (Ba et al., 2016)."""
    mean = x.mean(-1, keepdims=True)
    deviation = np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + epsilon)
    return (x - mean) / deviation * scale + bias


def rotate(vector, position, theta, slowed=lambda frequency: frequency):
    """Rotary position of one head: pair (i, i + E/2) as a complex number (Su et al., 2021)."""
    half = len(vector) // 2
    out = np.zeros(len(vector))
    for i in range(half):
        turn = np.exp(1j * position * slowed(theta ** (-i / half)))
        turned = complex(vector[i], vector[i + half]) * turn
        out[i], out[i + half] = turned.real, turned.imag
    return out


def slowed(frequency, config):
    """A frequency divided by the factor: all, or as Llama 3.1 those of few turns in a length."""
    if not config.rope_original_length:
        return frequency / config.rope_factor
    turns = config.rope_original_length * frequency / (2 * math.pi)
    if turns > config.rope_high:
        return frequency
    if turns < config.rope_low:
        return frequency / config.rope_factor
    share = (turns - config.rope_low) / (config.rope_high - config.rope_low)
    return share * frequency + (1 - share) * frequency / config.rope_factor


def silu(x):
    """`x σ(x)`."""
    return x / (1 + np.exp(-x))


def gelu(x):
    """The tanh form of GELU (Hendrycks and Gimpel, 2016)."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_exact(x):
    """`x Φ(x)`."""
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def relative_bucket(distance):
    """T5's bucket of a distance into the past, of 32 (Raffel et al., 2020): 0 … 15 have their own,
    then they grow with the logarithm, and the last holds all from 113 on, 128 and beyond too."""
    if distance < 16:
        return distance
    return min(16 + int(16 * math.log(distance / 16) / math.log(128 / 16)), 31)


def attention(q, k, v, mask, scale=None, bias=None, cap=0.0, window=0):
    """Attention of one example: q [T,H,E], k and v [S,K,E], mask [T,S]; H/K heads share a key.

    `bias` [H, 32] is for each head and bucket of how many steps back a key is among those seen, of
    which only the last `window` count.
    """
    T, H, E = q.shape
    scale = 1 / math.sqrt(E) if scale is None else scale
    group = H // k.shape[1]
    out = np.zeros((T, H, E))
    for t in range(T):
        seen = [s for s in range(k.shape[0]) if mask[t, s]][-window:]
        if not seen:
            continue
        for h in range(H):
            scores = np.array([q[t, h] @ k[s, h // group] * scale for s in seen])
            scores = cap * np.tanh(scores / cap) if cap else scores
            if bias is not None:
                steps_back = reversed(range(len(seen)))
                scores += [bias[h, relative_bucket(distance)] for distance in steps_back]
            weights = np.exp(log_softmax(scores))
            for weight, s in zip(weights, seen, strict=True):
                out[t, h] += weight * v[s, h // group]
    return out


def norm(x, params, config):
    """A norm of the last dim, by the network's kind."""
    if "bias" in params:
        return layer_norm(x, params["scale"], params["bias"], config.norm_epsilon)
    return rms_norm(x, params["scale"] + config.norm_offset, config.norm_epsilon)


def product(x, params, equation):
    """A linear map, with its bias if it has one."""
    return np.einsum(equation, x, params["kernel"]) + params.get("bias", 0.0)


def self_attention(y, params, bias, config, layer, positions, mask):
    """Attention of a layer to what its norm gave, [T, D]."""
    c = config
    q, k, v = (product(y, params[name], "td,dhe->the") for name in ("query", "key", "value"))
    window = c.windows[layer % len(c.windows)] if c.windows else 0
    turned = c.rotary_layers[layer % len(c.rotary_layers)] if c.rotary_layers else True
    local = c.rope_local_theta if window else 0
    width = c.rotary_dim or c.head_dim
    for name, x in (("query_norm", q), ("key_norm", k)):
        if c.qk_norm == "head":
            x[:] = norm(x, params[name], c)
        if c.qk_norm == "projection":
            flat = {"scale": params[name]["scale"].reshape(-1)}
            x[:] = norm(x.reshape(len(x), -1), flat, c).reshape(x.shape)
        for t, h in np.ndindex(x.shape[:2]) if turned and c.positions == "rotary" else ():
            x[t, h, :width] = rotate(
                x[t, h, :width],
                positions[t],
                local or c.rope_theta,
                (lambda frequency: frequency) if local else (lambda f: slowed(f, c)),
            )
    scale = (c.attention_scalar or c.head_dim) ** -0.5 if c.scale_attention else 1.0
    seen = attention(q, k, v, mask, scale, bias, c.attention_cap, window)
    return product(seen, params["out"], "the,hed->td")


def feed_forward(y, params, config):
    """The MLP of a layer."""
    gate = {"silu": silu, "gelu": gelu, "gelu_exact": gelu_exact}[config.activation]
    up = product(y, params["up"], "td,df->tf")
    hidden = gate(product(y, params["gate"], "td,df->tf")) * up if config.gated_mlp else gate(up)
    return product(hidden, params["down"], "tf,fd->td")


def of_layer(params, layer):
    """A layer of nested stacked arrays."""
    if isinstance(params, dict):
        return {name: of_layer(value, layer) for name, value in params.items()}
    return params[layer]


def decoder(params, config, tokens, positions, mask):
    """Hidden states [T, D] of one example; params of pit_jax's Decoder as float64 arrays."""
    x = params["embed"]["embedding"][tokens]
    if config.scale_embeddings:
        x = x * math.sqrt(config.embed_dim)
    before, after = config.norm_place != "after", config.norm_place != "before"
    bias = params.get("relative_bias")
    for n in range(config.num_layers):
        layer = of_layer(params["layers"], n)
        y = norm(x, layer["attention_norm"], config) if before else x
        y = self_attention(y, layer["attention"], bias, config, n, positions, mask)
        between = x + (norm(y, layer["attention_post_norm"], config) if after else y)
        y = x if config.parallel_blocks else between
        y = norm(y, layer["mlp_norm"], config) if before else y
        y = feed_forward(y, layer["mlp"], config)
        x = between + (norm(y, layer["mlp_post_norm"], config) if after else y)
    return norm(x, params["final_norm"], config)


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
        out = hidden @ params["decoder"]["embed"]["embedding"].T
        out = out / math.sqrt(config.embed_dim) if config.scale_logits else out
    else:
        out = hidden @ params["decoder"]["unembed"]["kernel"]
    return config.logit_cap * np.tanh(out / config.logit_cap) if config.logit_cap else out


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
