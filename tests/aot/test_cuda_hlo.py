"""Reading programs compiled for GPUs, in short texts as XLA writes them: launches, bytes, products, odd forms."""

from __future__ import annotations

import pytest

from kpjax.aot.cuda_hlo import GpuWork, read_gpu_work


def work(*operations: str, computations: str = "") -> GpuWork:
    """Of a program whose entry consists of these operations."""
    lines = "\n".join(f"  {one}" for one in operations)
    return read_gpu_work(f"HloModule jit_step\n\n{computations}\n\nENTRY %main (p: f32[8]) -> f32[8] {{\n{lines}\n}}\n")


def kinds(work: GpuWork) -> list[str]:
    return [one.kind for one in work.odd]


X = "%x = f32[16,64,64,32]{3,2,1,0} parameter(0)"
K = "%k = f32[64,3,3,32]{3,2,1,0} parameter(1)"
Y = "%y = f32[16,64,64,64]{3,2,1,0} parameter(2)"
WINDOW = "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f"
FLOPS = 2 * 16 * 64 * 64 * 64 * 9 * 32
LOOP = """
%body (c: (s32[], f32[8])) -> (s32[], f32[8]) {
  %c = (s32[], f32[8]{0}) parameter(0)
  %one = f32[8]{0} get-tuple-element(%c), index=1
  %add.1 = f32[8]{0} fusion(%one), kind=kLoop, calls=%fused_add
  %add.2 = f32[8]{0} fusion(%add.1), kind=kLoop, calls=%fused_add
}

%condition (c: (s32[], f32[8])) -> pred[] {
  %c = (s32[], f32[8]{0}) parameter(0)
  ROOT %less = pred[] fusion(%c), kind=kLoop, calls=%fused_less
}
"""


@pytest.mark.parametrize(
    "call",
    [
        '%c = (f32[16,64,64,64]{3,2,1,0}, u8[0]{0}) custom-call(%x, %k), target="__cudnn$convForward"',
        '%c = (f32[16,64,64,32]{3,2,1,0}, u8[0]{0}) custom-call(%y, %k), target="__cudnn$convBackwardInput"',
        '%c = (f32[64,3,3,32]{3,2,1,0}, u8[0]{0}) custom-call(%x, %y), target="__cudnn$convBackwardFilter"',
    ],
)
def test_a_convolution_and_its_gradients_are_of_the_same_size(call: str) -> None:
    call = call.replace(" target=", f" {WINDOW}, custom_call_target=")
    found = work(X, K, Y, call)
    assert (found.flops, found.float32, found.launches, found.odd) == (FLOPS, FLOPS, 1, ())
    half = work(*(line.replace("f32", "bf16") for line in (X, K, Y, call)))
    assert (half.flops, half.float32) == (FLOPS, 0)
    # an input, a kernel and an output, whichever of them is which
    assert found.moved == 4 * (16 * 64 * 64 * (32 + 64) + 64 * 9 * 32) == 2 * half.moved


def test_matrix_products_alone_and_in_fusions() -> None:
    inside = """%fused_dot (a: bf16[8,32], b: bf16[32,4]) -> bf16[8,4] {
  %a = bf16[8,32]{1,0} parameter(0)
  %b = bf16[32,4]{1,0} parameter(1)
  ROOT %dot.1 = bf16[8,4]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}"""
    config = 'backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["0"]}}}'
    found = work(
        "%p = bf16[8,32]{1,0} parameter(0)",
        "%q = bf16[32,4]{1,0} parameter(1)",
        "%r = f32[32,5]{1,0} parameter(2)",
        "%s = f32[32,7]{1,0} parameter(3)",
        "%f = bf16[8,4]{1,0} fusion(%p, %q), kind=kCustom, calls=%fused_dot",
        f'%g = (f32[5,7]{{1,0}}, s8[64]{{0}}) custom-call(%r, %s), custom_call_target="__cublas$gemm", {config}',
        computations=inside,
    )
    assert found.float32 == 2 * 5 * 7 * 32 and found.flops == found.float32 + 2 * 8 * 4 * 32
    assert found.launches == 2


@pytest.mark.parametrize(
    "stated, launches, at_least",
    [
        (', backend_config={"known_trip_count":{"n":"7"}}', 1 + 7 * 2, False),
        ("", 1 + 3, True),  # nothing says how many rounds: one of them, and its condition
    ],
)
def test_launches_in_loops(stated: str, launches: int, at_least: bool) -> None:
    found = work(
        "%p = (s32[], f32[8]{0}) parameter(0)",
        f"%while.1 = (s32[], f32[8]{{0}}) while(%p), condition=%condition, body=%body{stated}",
        "%out = f32[8]{0} get-tuple-element(%while.1), index=1",
        "ROOT %copy.1 = f32[8]{0} copy(%out)",
        computations=LOOP,
    )
    assert (found.launches, found.in_loops, found.at_least) == (launches, launches - 1, at_least)
    assert not found.odd


def test_a_loop_of_many_launches_is_named_once_with_those_in_it() -> None:
    def loop(of: str, body: str, rounds: int) -> str:
        count = f'backend_config={{"known_trip_count":{{"n":"{rounds}"}}}}'
        return f"(s32[], f32[8]{{0}}) while(%{of}), condition=%condition, body=%{body}, {count}"

    lines = ["%outer (c: (s32[], f32[8])) -> (s32[], f32[8]) {", "  %c = (s32[], f32[8]{0}) parameter(0)"]
    outer = "\n".join([*lines, f"  %w = {loop('c', 'body', 50)}", "}"])
    found = work(
        "%p = (s32[], f32[8]{0}) parameter(0)",
        f'%while.1 = {loop("p", "outer", 4)}, metadata={{op_name="jit(f)/nms"}}',
        computations=LOOP + "\n" + outer,
    )
    assert found.in_loops == 4 * 50 * 2
    (one,) = found.odd
    assert (one.kind, one.what, one.scope) == ("loop of many launches", "400 in 4 rounds", "jit(f)/nms")


def test_what_launches_nothing_and_what_has_two_halves() -> None:
    found = work(
        "%p = f32[8]{0} parameter(0)",
        "%zero = f32[] constant(0)",
        "%b = f32[2,4]{1,0} bitcast(%p)",
        "%s = f32[8]{0} all-reduce-start(%p), channel_id=1, to_apply=%add",
        "%d = f32[8]{0} all-reduce-done(%s)",
        "%g = (f32[8]{0}, f32[64]{0}) all-gather-start(%d), channel_id=2",
        "%h = f32[64]{0} all-gather-done(%g)",
        "ROOT %t = (f32[64]{0}, f32[8]{0}) tuple(%h, %p)",
    )
    assert found.launches == 2
    assert found.moved == 4 * (8 + 8) + 4 * (8 + 64)


def test_branches_and_calls_run_as_their_lines_do() -> None:
    more = "%called (p: f32[8]) -> f32[8] {\n  %p = f32[8]{0} parameter(0)\n  %n = f32[8]{0} fusion(%p), calls=%f\n}"
    found = work(
        "%p = f32[8]{0} parameter(0)",
        "%i = s32[] parameter(1)",
        "%a = f32[8]{0} call(%p), to_apply=%called",
        "%b = f32[8]{0} conditional(%i, %p, %p), branch_computations={%called, %called}",
        computations=more,
    )
    assert found.launches == 3 and found.in_loops == 0


def test_a_fusion_moves_the_slices_that_it_takes() -> None:
    inside = """%fused (table: f32[1000,8], rows: f32[1,8], i: s32[]) -> f32[1000,8] {
  %table = f32[1000,8]{1,0} parameter(0)
  %rows = f32[1,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  %cast = f32[1000,8]{1,0} bitcast(%table)
  %old = f32[1,8]{1,0} dynamic-slice(%cast, %i, %zero), dynamic_slice_sizes={1,8}
  %new = f32[1,8]{1,0} add(%old, %rows)
  ROOT %put = f32[1000,8]{1,0} dynamic-update-slice(%table, %new, %i, %zero)
}"""
    lines = ["%t = f32[1000,8]{1,0} parameter(0)", "%r = f32[1,8]{1,0} parameter(1)", "%i = s32[] parameter(2)"]
    fusion = "%f = f32[1000,8]{1,0} fusion(%t, %r, %i), kind=kLoop, calls=%fused"
    # a row read and written, the other operands read
    assert work(*lines, fusion, computations=inside).moved == 4 * (8 + 8 + 1 + 8)
    whole = inside.replace("dynamic-slice(%cast, %i, %zero), dynamic_slice_sizes={1,8}", "reduce(%cast, %zero)")
    assert work(*lines, fusion, computations=whole).moved == 4 * (8000 + 8 + 1 + 8)


def convolution(window: str) -> GpuWork:
    labels = "dim_labels=b01f_o01i->b01f"
    call = f'custom-call(%x, %k), window={{{window}}}, {labels}, custom_call_target="__cudnn$convForward"'
    return work(
        X, K, f'%c = (f32[16,64,64,64]{{3,2,1,0}}, u8[0]{{0}}) {call}, metadata={{op_name="jit(step)/deconv1"}}'
    )


def test_convolutions_that_cudnn_does_not_serve_well() -> None:
    for good in ("size=3x3 pad=1_1x1_1", "size=11x11 stride=2x2", "size=1x1"):
        assert not convolution(good).odd
    for window in ("size=64x64 rhs_dilate=2x2", "size=3x3 rhs_reversal=1x1", "size=3x12", "size=2x2 lhs_dilate=2x2"):
        (one,) = convolution(window).odd
        assert one.kind.startswith("convolution in a form") and window in one.what
        assert (one.times, one.scope) == (1, "jit(step)/deconv1") and "f32[16,64,64,64]" in one.what
    (one,) = work(X, K, f"%c = f32[16,64,64,64]{{3,2,1,0}} convolution(%x, %k), {WINDOW}").odd
    assert "no call of cuDNN" in one.what


@pytest.mark.parametrize("rows, odd", [(1_000_001, True), (1_000_000, False)])
def test_sorts_and_scatters_of_more_than_a_million_rows(rows: int, odd: bool) -> None:
    keys = f"%p = f32[{rows}]{{0}} parameter(0)"
    inside = f"""%fused_scatter (a: f32[9,8], i: s32[{rows},1], u: f32[{rows},8]) -> f32[9,8] {{
  %a = f32[9,8]{{1,0}} parameter(0)
  %i = s32[{rows},1]{{1,0}} parameter(1)
  %u = f32[{rows},8]{{1,0}} parameter(2)
  ROOT %s = f32[9,8]{{1,0}} scatter(%a, %i, %u), update_window_dims={{1}}, index_vector_dim=1, to_apply=%add
}}"""
    sort = work(keys, f"%s = f32[{rows}]{{0}} sort(%p), dimensions={{0}}, to_apply=%compare")
    radix = work(keys, f'%s = (f32[{rows}], u8[9]) custom-call(%p), custom_call_target="__cub$DeviceRadixSort"')
    scatter = work(
        "%a = f32[9,8]{1,0} parameter(0)",
        f"%i = s32[{rows},1]{{1,0}} parameter(1)",
        f"%u = f32[{rows},8]{{1,0}} parameter(2)",
        "%f = f32[9,8]{1,0} fusion(%a, %i, %u), kind=kInput, calls=%fused_scatter",
        computations=inside,
    )
    pooled = work(keys, f"%m = f32[{rows}]{{0}} select-and-scatter(%p, %p, %z), scatter=%add")
    names = [kinds(one) for one in (sort, radix, scatter, pooled)]
    found = [[f"{name} of more than a million rows"] for name in ("sort", "sort", "scatter", "scatter")]
    assert names == (found if odd else [[]] * 4)


def test_large_transposes_unless_whole_rows_move() -> None:
    def transposed(side: int, order: str) -> list[str]:
        inside = f"%fused (a: f32[64,{side},1024]) -> f32[64,1024,{side}] {{\n" + "\n".join(
            [
                f"  %a = f32[64,{side},1024]{{2,1,0}} parameter(0)",
                f"  ROOT %t = f32[64,1024,{side}]{{2,1,0}} transpose(%a), dimensions={{{order}}}",
                "}",
            ]
        )
        fusion = f"%f = f32[64,1024,{side}]{{2,1,0}} fusion(%p), kind=kInput, calls=%fused"
        return kinds(work(f"%p = f32[64,{side},1024]{{2,1,0}} parameter(0)", fusion, computations=inside))

    assert transposed(128, "0,2,1") == ["large transpose"]  # 32 MiB
    assert transposed(127, "0,2,1") == [] and transposed(128, "1,0,2") == []


def test_float64_and_calls_of_the_host() -> None:
    found = work("%p = f32[8]{0} parameter(0)", "%d = f64[8]{0} fusion(%p), kind=kLoop, calls=%f")
    assert [(one.kind, one.what) for one in found.odd] == [("float64", "fusion f64[8]")]
    call = '%c = f32[8]{0} custom-call(%p), custom_call_target="xla_ffi_python_gpu_callback"'
    assert kinds(work("%p = f32[8]{0} parameter(0)", call)) == ["host callback"]
