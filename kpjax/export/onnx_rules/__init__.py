"""The primitives of JAX as operators of ONNX: a function for each, and the one table of them in `kpjax.export.onnx_program`.

Every rule is a function (graph, eqn, inputs) -> outputs: the graph that is written (`kpjax.export.onnx_graph`), the
equation of the jaxpr, and `Value`s.
"""
