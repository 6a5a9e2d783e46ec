//! The probe's guest on AArch64: EL1 with the MMU off, as KVM resets a processor.

use kvm_bindings::{KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_SIZE_U64, kvm_vcpu_init};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use super::probe::{SLICE, failed};

pub(super) const MEMORY_START: u64 = 0x4000_0000;
/// One page of the largest page size that a host kernel may have.
pub(super) const MEMORY_BYTES: usize = 0x1_0000;

/// An address with no memory behind it, so that writing to it leaves to user space.
const DEVICE: u64 = 0x1000_0000;

/// x2: iterations of a slice; w0: the counter; x3: the device's address.
const PROGRAM: [u32; 6] = [
    0xaa02_03e1, // top:  mov  x1, x2
    0x1100_0400, // loop: add  w0, w0, #1
    0xf100_0421, //       subs x1, x1, #1
    0x54ff_ffc1, //       b.ne loop
    0xb900_0060, //       str  w0, [x3]
    0x17ff_fffb, //       b    top
];

// Indices into struct kvm_regs, in 64-bit words (arch/arm64/include/uapi/asm/kvm.h): x0 to x30, sp, pc.
const X0: u64 = 0;
const X2: u64 = 2;
const X3: u64 = 3;
const PC: u64 = 32;

/// Writes the code into the guest's memory.
pub(super) fn load(memory: &mut [u8]) {
    for (at, word) in memory.chunks_exact_mut(4).zip(PROGRAM) {
        at.copy_from_slice(&word.to_le_bytes());
    }
}

/// Puts the processor at the start of the code.
pub(super) fn prepare(_kvm: &Kvm, vm: &VmFd, vcpu: &VcpuFd) -> Result<(), String> {
    let mut target = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut target).map_err(failed("KVM_ARM_PREFERRED_TARGET"))?;
    vcpu.vcpu_init(&target).map_err(failed("KVM_ARM_VCPU_INIT"))?;
    for (word, value) in [(PC, MEMORY_START), (X0, 0), (X2, SLICE), (X3, DEVICE)] {
        // The id of a core register counts 32-bit words.
        let id = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | u64::from(KVM_REG_ARM_CORE) | (word * 2);
        vcpu.set_one_reg(id, &value.to_le_bytes()).map_err(failed("KVM_SET_ONE_REG"))?;
    }
    Ok(())
}

/// The guest's counter, if this is the exit at the end of a slice.
pub(super) fn counter(exit: &VcpuExit<'_>) -> Option<u32> {
    match exit {
        VcpuExit::MmioWrite(DEVICE, data) => Some(u32::from_le_bytes((*data).try_into().ok()?)),
        _ => None,
    }
}
