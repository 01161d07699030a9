"""Facts of compiled text: a few lines as the TPU's compiler writes them, and the same with each fault."""

from parity.audit.compiled import read_text
from parity.audit.facts import Array
from parity.plan.hlo import Collective

TEXT = """HloModule jit_step, input_output_alias={ {0}: (0, {}, may-alias), {1}: (1, {}, may-alias) }

%fused_computation.1 (param_0: bf16[8,384,64], param_1: bf16[64,128]) -> bf16[8,384,128] {
  %param_0 = bf16[8,384,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %param_1 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(1)
  %inside.1 = f32[8,384,384]{2,1,0} broadcast(%param_0), dimensions={}
  ROOT %convolution.1 = bf16[8,384,128]{2,1,0:T(8,128)(2,1)} convolution(%param_0, %param_1), window={size=1}
}

%fused_computation.2 (param_2: f32[64,64]) -> f32[64,64] {
  %param_2 = f32[64,64]{1,0} parameter(0)
  ROOT %convolution.2 = f32[64,64]{1,0} convolution(%param_2, %param_2), metadata={op_name="jit(step)/optimizer/dot"}
}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

ENTRY %main.1 (a: bf16[8,384,64], b: bf16[64,128], c: f32[64,64]) -> (bf16[8,384,128], f32[64,64]) {
  %a = bf16[8,384,64]{2,1,0} parameter(0)
  %b = bf16[64,128]{1,0} parameter(1)
  %c = f32[64,64]{1,0} parameter(2)
  %fusion.1 = bf16[8,384,128]{2,1,0} fusion(%a, %b), kind=kOutput, calls=%fused_computation.1
  %fusion.2 = f32[64,64]{1,0} fusion(%c), kind=kOutput, calls=%fused_computation.2
  %attention.1 = (bf16[8,384,64]{2,1,0}, f32[8,384]{1,0}) custom-call(%a), custom_call_target="tpu_custom_call"
  %all-reduce.1 = f32[64,64]{1,0} all-reduce(%fusion.2), channel_id=1, replica_groups=[1,4]<=[4], to_apply=%add
  ROOT %tuple.1 = (bf16[8,384,128]{2,1,0}, f32[64,64]{1,0}) tuple(%fusion.1, %all-reduce.1)
}
"""


def test_a_program_without_fault_is_read() -> None:
    facts = read_text(TEXT, 384, 4)
    assert [(str(each), each.optimizer) for each in facts.matmuls] == [
        ("bf16[8,384,64] × bf16[64,128]", False),
        ("f32[64,64] × f32[64,64]", True),
    ]
    assert facts.quadratic == ()  # what a fusion alone has is in no memory
    assert facts.donated == 2
    assert facts.callbacks == ()
    assert facts.kernels == {"Pallas for TPU": 1}
    assert facts.collectives == (Collective("all-reduce", 4, 1, 64 * 64 * 4),)


def test_a_float32_factor_is_found() -> None:
    facts = read_text(TEXT.replace("%param_1 = bf16", "%param_1 = f32"), 384, 4)
    assert not facts.matmuls[0].narrow


def test_a_square_in_memory_is_found() -> None:
    facts = read_text(TEXT.replace("f32[8,384]{1,0}) custom", "f32[8,384,384]{2,1,0}) custom"), 384, 4)
    assert facts.quadratic == (Array("f32", (8, 384, 384)),)


def test_a_buffer_that_is_not_donated_is_missed() -> None:
    assert read_text(TEXT.replace("{1}: (1, {}, may-alias) ", ""), 384, 4).donated == 1


def test_calls_of_the_host_are_found() -> None:
    send = "  %send.1 = (f32[], u32[], token[]) send(%c, %token), channel_id=2, is_host_transfer=true\n  ROOT %tuple"
    assert read_text(TEXT.replace("  ROOT %tuple", send), 384, 4).callbacks == ("send",)
    target = TEXT.replace("tpu_custom_call", "xla_ffi_python_gpu_callback")
    assert read_text(target, 384, 4).callbacks == ("xla_ffi_python_gpu_callback",)
