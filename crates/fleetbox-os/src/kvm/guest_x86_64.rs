//! The probe's guest on x86-64: long mode, one identity-mapped page table, no firmware, no interrupts.
//!
//! Layout of its memory: page tables at 0x1000 to 0x3fff, code at 0x4000.

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use super::probe::{SLICE, failed};

pub(super) const MEMORY_START: u64 = 0;
pub(super) const MEMORY_BYTES: usize = 0x5000;

const PML4: usize = 0x1000;
const PDPT: usize = 0x2000;
const PD: usize = 0x3000;
const CODE: usize = 0x4000;

/// A port that no device of KVM's own answers, so that writing to it leaves to user space.
const PORT: u16 = 0x3f0;

/// rbx: iterations of a slice; eax: the counter; dx: the port.
const PROGRAM: [u8; 13] = [
    0x48, 0x89, 0xd9, // top:  mov rcx, rbx
    0xff, 0xc0, // loop: inc eax
    0x48, 0xff, 0xc9, //       dec rcx
    0x75, 0xf9, //       jnz loop
    0xef, //       out dx, eax
    0xeb, 0xf3, //       jmp top
];

// Intel SDM volume 3: 4.5 (page tables), 2.5 (control registers), 2.2.1 (EFER).
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_RESERVED: u64 = 1 << 1;

/// Writes page tables and code into the guest's memory.
pub(super) fn load(memory: &mut [u8]) {
    let mut entry = |at: usize, value: u64| memory[at..at + 8].copy_from_slice(&value.to_le_bytes());
    entry(PML4, PDPT as u64 | PRESENT_WRITABLE);
    entry(PDPT, PD as u64 | PRESENT_WRITABLE);
    // The first 2 MiB, each address to itself.
    entry(PD, PRESENT_WRITABLE | LARGE_PAGE);
    memory[CODE..CODE + PROGRAM.len()].copy_from_slice(&PROGRAM);
}

/// Puts the processor into long mode at the start of the code.
pub(super) fn prepare(kvm: &Kvm, _vm: &VmFd, vcpu: &VcpuFd) -> Result<(), String> {
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
    vcpu.set_cpuid2(&cpuid).map_err(failed("KVM_SET_CPUID2"))?;

    let mut sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    let code = kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: 0x8,
        type_: 0xb, // executable, readable, accessed
        present: 1,
        dpl: 0,
        db: 0,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment { selector: 0x10, type_: 0x3, db: 1, l: 0, ..code };
    sregs.cs = code;
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = data;
    }
    sregs.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
    sregs.cr3 = PML4 as u64;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;

    let regs = kvm_regs {
        rip: CODE as u64,
        rbx: SLICE,
        rdx: u64::from(PORT),
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(failed("KVM_SET_REGS"))
}

/// The guest's counter, if this is the exit at the end of a slice.
pub(super) fn counter(exit: &VcpuExit<'_>) -> Option<u32> {
    match exit {
        VcpuExit::IoOut(PORT, data) => Some(u32::from_le_bytes((*data).try_into().ok()?)),
        _ => None,
    }
}
