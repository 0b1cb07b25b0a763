//! What an operation is called where its definition gives it no name: as BuildKit calls it.

use crate::pb;

/// A name of names of names stays this short, characters.
const NAME_CHARS_MAX: usize = 1000;

/// The name of an operation; `input` knows those of what it works on.
pub(crate) fn of<'a>(op: &pb::op::Op, inputs: usize, input: impl Fn(usize) -> Option<&'a str>) -> String {
    let named = |at: usize| input(at).unwrap_or_default();
    let side = |at: Option<i64>| match at.and_then(|at| usize::try_from(at).ok()) {
        Some(at) => format!("({})", named(at)),
        None => "scratch".to_owned(),
    };
    let name = match op {
        pb::op::Op::Exec(exec) => exec.meta.as_ref().map(|meta| meta.args.join(" ")).unwrap_or_default(),
        pb::op::Op::Source(source) => source.identifier.clone(),
        pb::op::Op::File(file) => file.actions.iter().filter_map(action).collect::<Vec<_>>().join(", "),
        pb::op::Op::Build(_) => "build".to_owned(),
        pb::op::Op::Merge(_) => format!("merge ({})", (0..inputs).map(named).collect::<Vec<_>>().join(", ")),
        pb::op::Op::Diff(diff) => {
            let (lower, upper) = (diff.lower.as_ref(), diff.upper.as_ref());
            format!("diff {} -> {}", side(lower.map(|of| of.input)), side(upper.map(|of| of.input)))
        }
        pb::op::Op::Passthrough(op) => format!("passthrough {}", op.id),
    };
    match (op, name.char_indices().nth(NAME_CHARS_MAX)) {
        (pb::op::Op::Merge(_) | pb::op::Op::Diff(_), Some((at, _))) => format!("{}…", &name[..at]),
        _ => name,
    }
}

fn action(action: &pb::FileAction) -> Option<String> {
    use pb::file_action::Action;
    Some(match action.action.as_ref()? {
        Action::Mkdir(mkdir) => format!("mkdir {}", mkdir.path),
        Action::Mkfile(mkfile) => format!("mkfile {}", mkfile.path),
        Action::Symlink(symlink) => format!("symlink {} -> {}", symlink.newpath, symlink.oldpath),
        Action::Rm(rm) => format!("rm {}", rm.path),
        Action::Copy(copy) => format!("copy {} {}", copy.src, copy.dest),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_called_as_buildkit_calls_them() {
        let names = ["one", "two"];
        let name = |op: pb::op::Op| of(&op, 2, |at| names.get(at).copied());
        let copy = pb::FileActionCopy { src: "/a".into(), dest: "/b".into(), ..Default::default() };
        let rm = pb::FileActionRm { path: "/c".into(), ..Default::default() };
        let actions = [pb::file_action::Action::Copy(copy), pb::file_action::Action::Rm(rm)];
        let actions = actions.map(|action| pb::FileAction { action: Some(action), ..Default::default() });
        assert_eq!(name(pb::op::Op::File(pb::FileOp { actions: actions.into() })), "copy /a /b, rm /c");
        assert_eq!(name(pb::op::Op::Merge(pb::MergeOp::default())), "merge (one, two)");
        let diff = |lower, upper| {
            pb::op::Op::Diff(pb::DiffOp {
                lower: Some(pb::LowerDiffInput { input: lower }),
                upper: Some(pb::UpperDiffInput { input: upper }),
            })
        };
        assert_eq!(name(diff(-1, 1)), "diff scratch -> (two)");
        assert_eq!(name(diff(0, 1)), "diff (one) -> (two)");
    }

    #[test]
    fn names_of_names_do_not_grow_without_end() {
        let long = "é".repeat(5000);
        let name = of(&pb::op::Op::Merge(pb::MergeOp::default()), 2, |_| Some(&long));
        assert_eq!(name.chars().count(), NAME_CHARS_MAX + 1);
    }
}
