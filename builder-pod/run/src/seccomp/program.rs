//! Compiles the table to a filter program: one block per architecture, a binary tree in each.

use lapstrake_sys::seccomp::Instruction;

use super::table::{ALLOWED, KNOWN_MAX, Row};

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const ANY_BIT: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// Offsets in the data that the kernel shows a filter.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

/// Namespace flags of `clone`: a step makes no namespaces.
const CLONE_NAMESPACES: u32 = 0x7e02_0000;

/// Personalities that programs ask for: Linux, 32-bit `uname`, with and without address space
/// randomization off, and the question what it is.
const PERSONALITIES: [u32; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, u32::MAX];

/// Address families that reach past the step: the hypervisor's, and the kernel's crypto.
const SOCKETS_REFUSED: [u32; 2] = [38, 40];

/// Calls of 32-bit arm's own, outside the common numbers: `breakpoint` up to `get_tls`.
const ARM_PRIVATE: std::ops::RangeInclusive<u32> = 0x000f_0001..=0x000f_0006;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Allow,
    NotPermitted,
    NotImplemented,
}

impl Verdict {
    fn value(self) -> u32 {
        match self {
            Verdict::Allow => 0x7fff_0000,
            Verdict::NotPermitted => 0x0005_0000 | 1,
            Verdict::NotImplemented => 0x0005_0000 | 38,
        }
    }
}

/// One architecture whose programs the machine can run.
pub(super) struct Arch {
    /// As the kernel names it to filters.
    pub(super) audit: u32,
    number: fn(&Row) -> i16,
    clone: u32,
    clone3: u32,
    personality: u32,
    socket: u32,
    x32_bit: bool,
    arm_private: bool,
}

const X86_64: Arch = Arch {
    audit: 0xc000_003e,
    number: |row| row.1,
    clone: 56,
    clone3: 435,
    personality: 135,
    socket: 41,
    x32_bit: true,
    arm_private: false,
};
const I386: Arch = Arch {
    audit: 0x4000_0003,
    number: |row| row.2,
    clone: 120,
    clone3: 435,
    personality: 136,
    socket: 359,
    x32_bit: false,
    arm_private: false,
};
const AARCH64: Arch = Arch {
    audit: 0xc000_00b7,
    number: |row| row.3,
    clone: 220,
    clone3: 435,
    personality: 92,
    socket: 198,
    x32_bit: false,
    arm_private: false,
};
const ARM: Arch = Arch {
    audit: 0x4000_0028,
    number: |row| row.4,
    clone: 120,
    clone3: 435,
    personality: 136,
    socket: 281,
    x32_bit: false,
    arm_private: true,
};

/// The architectures of this machine's family.
pub(super) fn family() -> &'static [&'static Arch] {
    if cfg!(target_arch = "aarch64") { &[&AARCH64, &ARM] } else { &[&X86_64, &I386] }
}

/// The filter for this machine.
pub(crate) fn compile() -> Vec<Instruction> {
    compile_for(family())
}

pub(super) fn compile_for(family: &[&Arch]) -> Vec<Instruction> {
    let mut program = vec![statement(LOAD, ARCH)];
    for arch in family {
        let block = block(arch);
        let length = u32::try_from(block.len()).expect("a block has some hundred instructions");
        // Equal: into the block. Else: over it.
        program.push(branch(EQUAL, arch.audit, 1, 0));
        program.push(statement(JUMP, length));
        program.extend(block);
    }
    program.push(give(Verdict::NotImplemented));
    program
}

fn block(arch: &Arch) -> Vec<Instruction> {
    let mut block = vec![statement(LOAD, NUMBER)];
    if arch.x32_bit {
        block.extend([branch(AT_LEAST, 0x4000_0000, 0, 1), give(Verdict::NotImplemented)]);
    }
    block.extend(when(
        arch.clone,
        vec![
            statement(LOAD, FIRST_ARGUMENT),
            branch(ANY_BIT, CLONE_NAMESPACES, 0, 1),
            give(Verdict::NotPermitted),
            give(Verdict::Allow),
        ],
    ));
    block.extend(when(arch.personality, one_of(&PERSONALITIES, Verdict::Allow, Verdict::NotPermitted)));
    block.extend(when(arch.socket, one_of(&SOCKETS_REFUSED, Verdict::NotPermitted, Verdict::Allow)));
    if arch.arm_private {
        block.extend([
            branch(AT_LEAST, *ARM_PRIVATE.start(), 0, 2),
            branch(AT_LEAST, *ARM_PRIVATE.end() + 1, 1, 0),
            give(Verdict::Allow),
        ]);
    }
    tree(&segments(arch), &mut block);
    block
}

fn when(number: u32, then: Vec<Instruction>) -> Vec<Instruction> {
    let length = u8::try_from(then.len()).expect("argument checks are short");
    std::iter::once(branch(EQUAL, number, 0, length)).chain(then).collect()
}

fn one_of(values: &[u32], hit: Verdict, miss: Verdict) -> Vec<Instruction> {
    let mut checks = vec![statement(LOAD, FIRST_ARGUMENT)];
    for value in values {
        checks.extend([branch(EQUAL, *value, 0, 1), give(hit)]);
    }
    checks.push(give(miss));
    checks
}

/// The number space cut into runs of one verdict: `(first number, verdict)`, ascending.
fn segments(arch: &Arch) -> Vec<(u32, Verdict)> {
    let allowed: std::collections::BTreeSet<u32> =
        ALLOWED.iter().filter_map(|row| u32::try_from((arch.number)(row)).ok()).collect();
    let mut segments: Vec<(u32, Verdict)> = Vec::new();
    for number in 0..=KNOWN_MAX + 1 {
        let verdict = if allowed.contains(&number) {
            Verdict::Allow
        } else if number == arch.clone3 || number > KNOWN_MAX {
            Verdict::NotImplemented
        } else {
            Verdict::NotPermitted
        };
        if segments.last().is_none_or(|(_, last)| *last != verdict) {
            segments.push((number, verdict));
        }
    }
    segments
}

fn tree(segments: &[(u32, Verdict)], out: &mut Vec<Instruction>) {
    if let [(_, verdict)] = segments {
        out.push(give(*verdict));
        return;
    }
    let (low, high) = segments.split_at(segments.len() / 2);
    let mut left = Vec::new();
    tree(low, &mut left);
    out.push(branch(AT_LEAST, high[0].0, 0, 1));
    out.push(statement(JUMP, u32::try_from(left.len()).expect("a tree has some hundred instructions")));
    out.extend(left);
    tree(high, out);
}

fn give(verdict: Verdict) -> Instruction {
    statement(RETURN, verdict.value())
}

fn statement(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

fn branch(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would.
    fn judge(program: &[Instruction], arch: u32, number: u32, argument: u32) -> u32 {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let Instruction { code, jt, jf, k } = program[at];
            at += 1;
            let holds = match code {
                LOAD => {
                    loaded = match k {
                        NUMBER => number,
                        ARCH => arch,
                        _ => argument,
                    };
                    continue;
                }
                RETURN => return k,
                JUMP => {
                    at += k as usize;
                    continue;
                }
                EQUAL => loaded == k,
                AT_LEAST => loaded >= k,
                ANY_BIT => loaded & k != 0,
                other => panic!("unknown code {other}"),
            };
            at += usize::from(if holds { jt } else { jf });
        }
    }

    #[test]
    fn every_number_of_every_architecture_gets_the_verdict_of_the_table() {
        for family in [[&X86_64, &I386], [&AARCH64, &ARM]] {
            let program = compile_for(&family);
            assert!(program.len() < lapstrake_sys::seccomp::INSTRUCTIONS_MAX / 2);
            for arch in family {
                for number in (0..=KNOWN_MAX)
                    .filter(|n| ![arch.clone, arch.clone3, arch.personality, arch.socket].contains(n))
                {
                    let listed = ALLOWED.iter().any(|row| u32::try_from((arch.number)(row)) == Ok(number));
                    let expected = if listed { Verdict::Allow } else { Verdict::NotPermitted };
                    let verdict = judge(&program, arch.audit, number, 0);
                    assert_eq!(verdict, expected.value(), "{number} on {:x}", arch.audit);
                }
                for newer in [arch.clone3, KNOWN_MAX + 1, 5000, u32::MAX] {
                    assert_eq!(judge(&program, arch.audit, newer, 0), Verdict::NotImplemented.value());
                }
            }
        }
    }

    #[test]
    fn arguments_decide_about_clone_personality_and_sockets() {
        let program = compile_for(&[&X86_64]);
        let judge = |number, argument| judge(&program, X86_64.audit, number, argument);
        assert_eq!(judge(56, 17), Verdict::Allow.value());
        assert_eq!(judge(56, 0x1000_0000 | 17), Verdict::NotPermitted.value());
        assert_eq!(judge(135, u32::MAX), Verdict::Allow.value());
        assert_eq!(judge(135, 0x0040_0000), Verdict::NotPermitted.value());
        assert_eq!(judge(41, 2), Verdict::Allow.value());
        assert_eq!(judge(41, 40), Verdict::NotPermitted.value());
    }

    #[test]
    fn x32_and_foreign_architectures_do_not_exist() {
        let program = compile_for(&[&X86_64, &I386]);
        assert_eq!(judge(&program, X86_64.audit, 0x4000_0000, 0), Verdict::NotImplemented.value());
        assert_eq!(judge(&program, 0x8000_0016, 3, 0), Verdict::NotImplemented.value());
    }

    #[test]
    fn arm_keeps_its_private_calls() {
        let program = compile_for(&[&AARCH64, &ARM]);
        assert_eq!(judge(&program, ARM.audit, 0x000f_0002, 0), Verdict::Allow.value());
        assert_eq!(judge(&program, ARM.audit, 0x000f_0007, 0), Verdict::NotImplemented.value());
    }

    #[test]
    fn mount_and_namespace_calls_are_not_in_the_table() {
        let refused = [
            "mount",
            "umount2",
            "unshare",
            "setns",
            "pivot_root",
            "bpf",
            "keyctl",
            "add_key",
            "request_key",
            "kexec_load",
            "init_module",
            "finit_module",
            "perf_event_open",
            "userfaultfd",
            "open_by_handle_at",
            "open_tree",
            "move_mount",
            "fsopen",
            "mount_setattr",
            "io_uring_setup",
            "syslog",
            "reboot",
            "swapon",
            "acct",
            "settimeofday",
            "sethostname",
            "clone",
            "clone3",
            "socket",
            "personality",
        ];
        for name in refused {
            assert!(!ALLOWED.iter().any(|row| row.0 == name), "{name}");
        }
    }
}
