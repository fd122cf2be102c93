"""The primitives of JAX as operators of ONNX: a function for each; `kpjax.export.onnx_program` has the table of all.

Every rule is a function (graph, eqn, inputs) -> outputs: the graph that is written (`kpjax.export.onnx_graph`), the
equation of the jaxpr, and `Value`s.
"""
