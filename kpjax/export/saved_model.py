"""Exporting a detector as a SavedModel of TensorFlow."""

from __future__ import annotations

import functools
from typing import Any

from kpjax.export.stablehlo import export, inputs_of, outputs_of

# The version of StableHLO that a SavedModel holds: by default JAX 0.11 writes a newer one than TensorFlow 2.21 reads.
STABLEHLO = "1.9.0"


def save_for_tensorflow(
    detector: Any, tree: Any, leaves: list[Any], size: tuple[int, int], preset: str, top_k: int, folder: str
) -> None:
    """Write the program of `export` as a SavedModel: `model = tf.saved_model.load(folder); model.detect(canvases)`.

    A detector of 3D boxes takes cameras too.  The results are a dictionary with the names of `outputs_of`; the
    signature "serving_default" is the same.
    Weights are variables of the model, so that it holds them once.  Needs TensorFlow 2.20 or newer to run, and XLA
    in it.  The best are found by sorting and the program is written as STABLEHLO, both of which it can read.
    """
    from kpjax.data.tensorflow import import_tensorflow

    tf = import_tensorflow()
    from jaxlib.mlir.dialects import stablehlo
    from tensorflow.compiler.tf2xla.python import xla

    from kpjax.ops.largest import by_sorting

    with by_sorting():
        exported = export(detector, tree, leaves, size, preset, top_k)
    call = functools.partial(
        xla.call_module,
        version=exported.calling_convention_version,
        module=stablehlo.serialize_portable_artifact_str(exported.mlir_module(), STABLEHLO),
        Tout=[tf.as_dtype(x.dtype) for x in exported.out_avals],
        Sout=[[d if isinstance(d, int) else None for d in x.shape] for x in exported.out_avals],
        platforms=[name.upper() for name in exported.platforms],
    )
    model = tf.Module()
    model.weights = [tf.Variable(leaf, trainable=False) for leaf in leaves]

    def detect(*images: Any) -> dict[str, Any]:
        inputs = (*model.weights, *images)
        found = call([tf.convert_to_tensor(inputs[i]) for i in exported.module_kept_var_idx])
        return dict(zip(outputs_of(detector), found, strict=True))

    names = inputs_of(detector, size)
    signature = [tf.TensorSpec((None, *shape), tf.as_dtype(dtype), name=name) for name, shape, dtype in names]
    model.detect = tf.function(detect, input_signature=signature, autograph=False)
    tf.saved_model.save(model, folder, signatures=model.detect)
