"""MLKD: Multi-Level Logit Distillation (Jin, Wang, Lin; CVPR 2023), as its code minimises it.

Every image is seen twice: weakly changed (the run's own augmentation), and strongly (RandAugment besides). Student and
teacher are compared by their logits of single samples, of pairs of classes and of pairs of samples, at several
temperatures, TT = {T0, 3, 5, 2, 6}. With P = softmax(z / T), `[batch, classes]`, and KD at T as in
`orc_jax.methods.kd`:

    CC_T = |P_t^T P_t - P_s^T P_s|^2 / classes        BC_T = |P_t P_t^T - P_s P_s^T|^2 / batch
    v (CE weak + CE strong) + w (c_b sum over TT of KD_T weak
                                 + sum over T0, 3, 5 of KD_T strong + sum over 2, 6 of KD_T weak
                                 + c_c sum over TT of CC_T weak + c_b sum over TT of BC_T weak)

c_b is the share of samples of which the teacher is no surer than of the median one, c_c that of classes with no more of
its probability than the median one: both about a half. NOTE(paper): there they are masks of single samples and classes,
and 2 and 6 are temperatures of the strong view, too; in the code they are as above.

With `standardize`: the KD terms on standardised logits (Sun et al., CVPR 2024).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from orc_jax.data import device_operations
from orc_jax.data.policies import POLICIES
from orc_jax.data.types import Images
from orc_jax.errors import require
from orc_jax.losses import distillation, standardized
from orc_jax.methods.base import Method
from orc_jax.methods.offline import Adapter, Seen, offline
from orc_jax.verbs import Context

STRONG = (2, 10)  # RandAugment's operations and magnitude in the authors' code


def mlkd(
    architectures: Sequence[str],
    *,
    temperature: float = 4.0,
    label_weight: float = 0.1,
    weight: float = 0.9,
    standardize: bool = False,
) -> Method:
    """The method.

    Args:
        architectures: the teacher, then its students.
        temperature: T0; 4 in the authors' code, with logit standardisation 2 for most pairs.
        label_weight: v; 0.1 in the authors' code.
        weight: w; 0.9 in the authors' code, with logit standardisation 9.
        standardize: compare standardised logits.
    """
    require("config.mlkd.temperature", temperature, temperature > 0, "greater than 0")
    require("config.mlkd.label_weight", label_weight, label_weight >= 0, "at least 0")
    require("config.mlkd.weight", weight, weight >= 0, "at least 0")

    def loss(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> jax.Array:
        t, v, w = (context.value(name, option) for name, option in options.items())
        views_s, views_t = (jnp.split(seen.logits, 2) for seen in (student, teacher))
        of_labels = sum(context.label_loss(logits, batch.labels) for logits in views_s)
        of_s, of_t = ((context.gather(weak), context.gather(strong)) for weak, strong in (views_s, views_t))
        return v * of_labels + w * sum(levels(*of_s, *of_t, t, standardize))

    options = {"temperature": temperature, "label_weight": label_weight, "weight": weight}
    return offline("mlkd", architectures, loss, values=tuple(options), views=2, change=strengthened)


def levels(
    weak_s: jax.Array,
    strong_s: jax.Array,
    weak_t: jax.Array,
    strong_t: jax.Array,
    temperature: float,
    standardize: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What is compared of samples, of classes and of pairs of samples, each [].

    Args:
        weak_s, strong_s, weak_t, strong_t: logits `[batch, classes]` of the whole batch, by view and network.
        temperature: T0.
        standardize: of the first term.
    """
    sure = jax.nn.softmax(weak_t)
    share_of_samples, share_of_classes = ((x <= jnp.median(x)).mean() for x in (sure.max(-1), sure.sum(0)))

    def kd(logits_s: jax.Array, logits_t: jax.Array, t: float) -> jax.Array:
        logits_s, logits_t = (standardized(z) if standardize else z for z in (logits_s, logits_t))
        return distillation(logits_s, logits_t, t).mean()

    def classes(t: float) -> jax.Array:
        p_s, p_t = jax.nn.softmax(weak_s / t), jax.nn.softmax(weak_t / t)
        return jnp.square(p_t.T @ p_t - p_s.T @ p_s).sum() / p_s.shape[1]

    def samples(t: float) -> jax.Array:
        p_s, p_t = jax.nn.softmax(weak_s / t), jax.nn.softmax(weak_t / t)
        return jnp.square(p_t @ p_t.T - p_s @ p_s.T).sum() / p_s.shape[0]

    for_both, for_weak = (temperature, 3.0, 5.0), (2.0, 6.0)
    temperatures = (*for_both, *for_weak)
    single = share_of_samples * sum(kd(weak_s, weak_t, t) for t in temperatures)
    single += sum(kd(strong_s, strong_t, t) for t in for_both) + sum(kd(weak_s, weak_t, t) for t in for_weak)
    between_classes = share_of_classes * sum(classes(t) for t in temperatures)
    return single, between_classes, share_of_samples * sum(samples(t) for t in temperatures)


def strengthened(context: Context, views: jax.Array) -> jax.Array:
    """Two views of a batch, `[2, batch, height, width, channels]`, the second changed by RandAugment as well."""
    weak, strong = views
    policy = POLICIES["rand"](context.setup.image_shape[:2], *STRONG)
    keys = context.local(jax.random.split(context.key, context.setup.batch_size), len(strong))
    whole = jnp.round(strong).astype(jnp.uint8)  # mixed ones are not
    changed = jax.vmap(lambda key, image: device_operations.apply(key, image, policy))(keys, whole)
    return jnp.stack([weak, changed.astype(weak.dtype)])
