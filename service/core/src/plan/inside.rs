//! The blocks inside the steps of a definition, and the field paths of steps.

use crate::definition::{self, Block};
use crate::state::Part;
use crate::tree::Key;

/// A block inside a step.
pub(super) struct Inner<'a> {
    /// Its field path in the step.
    pub field: String,
    pub part: Part,
    pub key: Key,
    pub block: &'a Block,
}

/// The blocks inside a step, those of its `catch` last.
pub(super) fn parts(step: &definition::Step) -> impl Iterator<Item = Inner<'_>> {
    use definition::StepKind as Kind;
    let inner = |field: String, part, block| Inner { field, part, key: Key::None, block };
    let own: Vec<_> = match &step.kind {
        Kind::Switch(switch) => {
            let cases = switch.cases.iter().zip(0..).map(|(case, index)| {
                inner(format!("switch.cases[{index}]"), Part::Case(index), &case.block)
            });
            let default = switch.default.iter();
            let default = default.map(|block| inner("switch.default".into(), Part::Default, block));
            cases.chain(default).collect()
        }
        Kind::Try(body) => vec![inner("try".into(), Part::Body, body)],
        Kind::Parallel(parallel) => {
            let branches = parallel.branches.iter().map(|(id, branch)| Inner {
                field: format!("parallel.branches.{id}"),
                part: Part::Branch,
                key: Key::Branch(id.as_str().into()),
                block: &branch.block,
            });
            branches.collect()
        }
        Kind::ForEach(each) => {
            let (field, key) = ("for_each".into(), Key::Item);
            vec![Inner { field, part: Part::Item, key, block: &each.block }]
        }
        Kind::Task(_) | Kind::Set(_) | Kind::Fail(_) | Kind::Return { .. } => Vec::new(),
    };
    let handlers = step.catch.iter().zip(0..).map(move |(catch, index)| {
        inner(format!("catch[{index}]"), Part::Handler(index), &catch.block)
    });
    own.into_iter().chain(handlers)
}

/// The number of steps, with those inside them.
pub(super) fn count(steps: &[definition::Step]) -> usize {
    let inside = steps.iter().flat_map(definition::Step::blocks).map(|block| count(&block.steps));
    steps.len() + inside.sum::<usize>()
}

/// The steps of a block, each with its field path, such as `steps[2]`.
pub(super) fn paths<'a>(
    field: &'a str,
    steps: &'a [definition::Step],
) -> impl Iterator<Item = (String, &'a definition::Step)> {
    steps.iter().enumerate().map(move |(index, step)| (format!("{field}[{index}]"), step))
}
