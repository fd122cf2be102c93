"""Which precision each product has, in the training step and in the test program, and where the setting is read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend import core as jex

import kpjax
from kpjax.checkpoint.orbax import CheckpointError
from kpjax.config import Config, ModelConfig
from kpjax.detectors import at_test, build, from_config, options_of
from kpjax.errors import ConfigError
from kpjax.inference.program import make_infer
from kpjax.nn.convolution import PRECISIONS, conv2d
from kpjax.nn.layers import conv_transpose_4x4
from kpjax.parallel.sharding import make_mesh
from kpjax.training.checkpoints import check_same_model
from kpjax.training.step import batch_shapes, init_state, make_step
from tests.convert import released
from tests.tiny import OPTIONS, random_variables

DEFORMABLE = ("centernet_r18_dcn", "centernet_dla34", "ttfnet_r18")
TRAINED = (*DEFORMABLE, "cornernet_hg104", "triplet_hg52")
MODELS = (*TRAINED, "centernet_r18_mmdet", "centernet_r50", "centernet_dla34_nodcn")
HIGHEST = lax.Precision.HIGHEST
SIDE = 128


class Product(NamedTuple):
    """A convolution or a product of matrices: the modules it is in, its primitive, its operands' precision."""

    scope: str
    primitive: str
    precision: tuple[lax.Precision, lax.Precision] | None


def products(jaxpr: Any, scope: str = "") -> Iterator[Product]:
    for equation in jaxpr.eqns:
        here, name = f"{scope}/{equation.source_info.name_stack}", equation.primitive.name
        if name in ("conv_general_dilated", "dot_general"):
            yield Product(here, name, equation.params["precision"])
        for inner in jex.jaxprs_in_params(equation.params):
            yield from products(inner, here)


def always_highest(product: Product, net: str) -> bool:
    """Outside the network; convolutions of offsets and the products of their gradients; the heads' 1x1 convolutions."""
    network = re.search(rf"\b{net}\b", product.scope) is not None
    last = product.primitive == "dot_general" and re.search(r"heads\d*/", product.scope) is not None
    return not network or last or "/offset" in product.scope or "...c,...c->..." in product.scope


def check(found: list[Product], net: str, precision: str) -> dict[str, int]:
    """Returns how many products there are of each kind."""
    asked = PRECISIONS[precision]
    counts = {"asked": 0, "offset": 0, "heads": 0, "outside": 0}
    for product in found:
        wanted = (HIGHEST, HIGHEST) if always_highest(product, net) else asked and (asked, asked)
        assert product.precision == wanted, product
        kind = "asked"
        if always_highest(product, net):
            kind = next((k for k in ("offset", "heads") if k in product.scope), "outside")
        counts[kind] += 1
    return counts


def small(name: str, precision: str) -> Config:
    config = Config(steps=1, batch=2)
    config.model.name, config.model.precision = name, precision
    config.model.options = dict(released.SMALL[name])
    config.augment.height = config.augment.width = SIDE - build(name, 1).less
    config.data.canvas, config.data.max_boxes = SIDE, 4
    config.eval.resolution = "fixed"
    return config.check()


@pytest.mark.parametrize("name", TRAINED)
def test_products_of_the_training_step(name: str) -> None:
    config = small(name, "high")
    detector = from_config(config, 3)
    state = jax.eval_shape(lambda key: init_state(detector, config, 1, key), jax.random.key(0))
    program = jax.make_jaxpr(make_step(detector, config, 1))(state, batch_shapes(config, detector))
    counts = check(list(products(program.jaxpr)), type(detector.net).__name__, "high")
    assert counts["asked"] > 50 and counts["heads"] >= 6 and counts["outside"] >= 2  # and of the gradients
    assert (counts["offset"] > 0) == (name in DEFORMABLE)


@pytest.mark.parametrize("name, precision", [*((name, "high") for name in MODELS), (MODELS[0], "default")])
def test_products_of_the_test_program(name: str, precision: str) -> None:
    detector = from_config(small(name, precision), 3)
    side = SIDE - detector.less
    variables = jax.eval_shape(detector.net.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    infer = make_infer(detector, make_mesh(), preset="flip", top_k=5)
    batch = jax.device_count()
    shapes = (((batch, side, side, 3), jnp.uint8), ((batch, 4), jnp.int32), ((batch, 1), jnp.int32))
    program = infer.trace(variables, *(jax.ShapeDtypeStruct(*s) for s in shapes)).jaxpr
    counts = check(list(products(program.jaxpr)), type(detector.net).__name__, precision)
    assert counts["asked"] > 10 and counts["heads"] >= 2


@pytest.mark.parametrize("precision", PRECISIONS.values())
def test_all_forms_of_a_convolution(precision: lax.Precision | None) -> None:
    """Winograd's too, which small networks have no use for."""

    def gradients(x: Any, kernel: Any, deconv: Any) -> Any:
        def loss(x: Any, kernel: Any, deconv: Any) -> Any:
            y = conv2d(x, kernel, 1, ((1, 1), (1, 1)), precision)
            y = conv2d(y, kernel[:1, :1, :, :8], 1, ((0, 0), (0, 0)), precision)
            return conv_transpose_4x4(y, deconv, precision).sum()

        return jax.grad(loss, argnums=(0, 1, 2))(x, kernel, deconv)

    shapes = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 64, 64, 192), (3, 3, 192, 192), (4, 4, 8, 8)))
    found = list(products(jax.make_jaxpr(gradients)(*shapes).jaxpr))
    kinds = [p.primitive for p in found]
    assert kinds.count("dot_general") >= 2 * 16 and kinds.count("conv_general_dilated") >= 8
    wanted = precision and (precision, precision)
    assert {p.precision for p in found} == {wanted}


def test_precision_is_an_option_of_computing_alone() -> None:
    assert options_of(ModelConfig()) == {}  # as before there was a precision: old checkpoints' options stay equal
    assert options_of(ModelConfig(precision="highest")) == {"precision": "highest"}
    config = Config(steps=1)
    config.model.precision = "float32"
    with pytest.raises(ConfigError, match=r"config\.model\.precision is 'float32'; choose one of 'default', 'high', "):
        config.check()
    for name in ("centernet_r18", "cornernet_hg104", "triplet_hg52", "ttfnet_r18"):
        with pytest.raises(ConfigError, match=rf"model {name}: precision is 'full'; choose one of 'default'"):
            build(name, precision="full")
    stored = {"model": "centernet_r18", "num_classes": 3, "options": {**OPTIONS, "deconv": [8]}}
    other = build("centernet_r18", 3, **OPTIONS, precision="highest", dtype="bfloat16", remat=True, bn_groups=2)
    check_same_model(stored, other, "here")
    with pytest.raises(CheckpointError, match="of another model: its options"):
        check_same_model(stored, build("centernet_r18", 3, **OPTIONS, overlap=0.5, precision="high"), "here")


def test_a_detector_at_another_precision() -> None:
    detector = build("centernet_r18", 3, **OPTIONS)
    other = at_test(detector, precision="highest")
    variables = random_variables(detector.net)

    def found(detector: Any) -> set[Any]:
        program = jax.make_jaxpr(detector.net.apply)(variables, np.zeros((1, 64, 64, 3), np.float32))
        return {p.precision for p in products(program.jaxpr)}

    assert found(other) == {(HIGHEST, HIGHEST)}
    assert found(detector) == {None, (HIGHEST, HIGHEST)}
    assert at_test(detector) is detector and at_test(detector, "linear").net is detector.net
    with pytest.raises(ConfigError, match="precision is 'most'"):
        kpjax.Predictor(detector, variables, precision="most")
