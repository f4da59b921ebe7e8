//! Converts step paths. In core a compensation has a path of its own; the protocol has the path of the step
//! and a flag.

use recoup_core::id::StepPath;
use recoup_proto::v1;

/// Converts a path. A compensation is identified by the step that it undoes.
pub fn step_ref(path: &StepPath) -> v1::StepRef {
    let (step_path, compensation) = split(path);
    v1::StepRef { step_path, compensation }
}

/// The path of the step, and whether the given path is that of its compensation.
pub fn split(path: &StepPath) -> (String, bool) {
    match path.compensated() {
        Some(step) => (step.as_str().to_owned(), true),
        None => (path.as_str().to_owned(), false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_ref_of_a_compensation_names_the_step_it_undoes() {
        let reference = step_ref(&StepPath::from("charge/compensate"));
        assert_eq!((reference.step_path.as_str(), reference.compensation), ("charge", true));
        let reference = step_ref(&StepPath::from("charge"));
        assert_eq!((reference.step_path.as_str(), reference.compensation), ("charge", false));
    }
}
