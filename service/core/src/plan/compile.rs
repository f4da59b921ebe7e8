//! Compiles a definition into a plan and collects all of its issues on the way.

use std::time::Duration;

use super::issue::{Issue, IssueCode, Issues};
use super::{
    CANCEL_GRACE, CLEANUP_TIMEOUT, CompensationPlan, Plan, QUEUE, START_TO_CLOSE, StepKind,
    StepPlan, TaskPlan, policy,
};
use crate::definition::{self, Defaults, OnError, Timeouts, Workflow};
use crate::expression::{Condition, Scope, Template, Trust};
use crate::id::{StepId, StepPath};
use crate::limits::{
    DESCRIPTION_BYTES_MAX, NAME_BYTES_MAX, PRIORITY_MAX, QUEUE_BYTES_MAX, STEP_ID_BYTES_MAX,
    STEPS_MAX, TASK_TYPE_BYTES_MAX,
};
use crate::retry::RetryPolicy;
use crate::tree::{Place, ScopeId, Tree};

/// Words that CEL reserves.
const RESERVED: &[&str] = &[
    "as",
    "break",
    "const",
    "continue",
    "else",
    "false",
    "for",
    "function",
    "if",
    "import",
    "in",
    "let",
    "loop",
    "namespace",
    "null",
    "package",
    "return",
    "true",
    "var",
    "void",
    "while",
];

impl Plan {
    /// Resolves defaults, compiles expressions and checks everything that can be checked before an
    /// execution starts. A value that a step does not set is taken from the workflow's defaults, or else is
    /// the built-in value.
    ///
    /// # Errors
    /// All issues, in the order of the definition, except that those of step ids come before all other
    /// issues of steps.
    pub fn compile(definition: &definition::Workflow, version: u32) -> Result<Self, Vec<Issue>> {
        compile(definition, version, Trust::Unchecked)
    }

    /// Compiles a definition that was accepted when it was registered, by this binary or by one with other
    /// rules. The rules are not applied again: a release with stricter rules must not stop executions that
    /// are running.
    ///
    /// # Errors
    /// Only issues that leave nothing to execute: a template or an expression that cannot be parsed.
    pub fn of_accepted(
        definition: &definition::Workflow,
        version: u32,
    ) -> Result<Self, Vec<Issue>> {
        compile(definition, version, Trust::Accepted)
    }
}

fn compile(definition: &Workflow, version: u32, trust: Trust) -> Result<Plan, Vec<Issue>> {
    let issues = Issues { found: Vec::new(), trust };
    let mut compiler = Compiler { issues, defaults: &definition.defaults };
    let plan = compiler.workflow(definition, version);
    let issues = compiler.issues.found;
    if issues.is_empty() { Ok(plan) } else { Err(issues) }
}

/// The plan that the compiler returns is complete only if it found no issues.
struct Compiler<'a> {
    issues: Issues,
    defaults: &'a Defaults,
}

impl Compiler<'_> {
    fn workflow(&mut self, definition: &Workflow, version: u32) -> Plan {
        let (steps, finally) = (&definition.steps.0, &definition.finally.0);
        self.name(definition);
        self.durations(definition);
        self.defaults();
        if steps.is_empty() {
            self.issues.add(
                "steps".into(),
                IssueCode::Required,
                "at least one step is required".into(),
            );
        }
        let mut plan = Plan {
            name: definition.name.clone(),
            version,
            tree: Tree::default(),
            nodes: Vec::with_capacity(steps.len() + finally.len()),
            timed: Vec::new(),
            timeout: definition.timeout,
            cleanup_timeout: Some(definition.cleanup_timeout.unwrap_or(CLEANUP_TIMEOUT)),
            cancel_grace: definition.cancel_grace.unwrap_or(CANCEL_GRACE),
            output: None,
        };
        let count = steps.len() + finally.len();
        if count > STEPS_MAX {
            let message = format!("{count} steps, at most {STEPS_MAX} are allowed");
            self.issues.add("steps".into(), IssueCode::TooMany, message);
            if !self.issues.found.is_empty() {
                return plan;
            }
        }

        // All steps are added to the tree first. An expression may name a step that comes later in the
        // definition, even if only to be rejected for it.
        let mut tree = Tree::default();
        let blocks = [("steps", steps, ScopeId::STEPS), ("finally", finally, ScopeId::FINALLY)];
        for (field, block, scope) in blocks {
            for (path, step) in paths(field, block) {
                self.step_id(&path, &step.id);
                if tree.find(step.id.as_str()).is_some() {
                    let message = format!("another step already has the id `{}`", step.id);
                    self.issues.add(format!("{path}.id"), IssueCode::StepIdTaken, message);
                }
                tree.add_step(scope, step.id.clone());
            }
        }
        let trust = self.issues.trust;
        let scope = |place, has_error| Scope { tree: &tree, place, has_error, trust };
        let undo = scope(Place::end_of(ScopeId::STEPS), true);
        for (position, (path, step)) in paths("steps", steps).enumerate() {
            let place = Place { scope: ScopeId::STEPS, position };
            plan.nodes.push(self.step(&path, step, &scope(place, false), &undo));
        }
        for (position, (path, step)) in paths("finally", finally).enumerate() {
            let scope = scope(Place { scope: ScopeId::FINALLY, position }, true);
            if step.compensate.is_some() {
                let message =
                    "a step of `finally` is never compensated: remove `compensate`".to_owned();
                let path = format!("{path}.compensate");
                self.issues.add(path, IssueCode::CompensateInFinally, message);
            }
            plan.nodes.push(self.step(&path, step, &scope, &scope));
        }
        if let Some(output) = &definition.output {
            let compiled = Template::compile(output, &scope(Place::end_of(ScopeId::STEPS), false));
            plan.output = self.issues.expressions("output", compiled);
        }
        plan.timed = timed(&tree, &plan.nodes);
        plan.tree = tree;
        plan
    }

    fn name(&mut self, definition: &Workflow) {
        let name = definition.name.as_str();
        let is_name = name.starts_with(|first: char| first.is_ascii_alphanumeric())
            && name.len() <= NAME_BYTES_MAX
            && name.chars().all(|letter| letter.is_ascii_alphanumeric() || "._-".contains(letter));
        if !is_name {
            let message = format!(
                "`{name:.NAME_BYTES_MAX$}` is not a valid name: use a letter or digit, then letters, \
                 digits, `.`, `_` and `-`, at most {NAME_BYTES_MAX} characters, such as `order`"
            );
            self.issues.add("name".into(), IssueCode::NameInvalid, message);
        }
        self.text("description", &definition.description, DESCRIPTION_BYTES_MAX);
    }

    fn durations(&mut self, definition: &Workflow) {
        // `cancel_grace` may be zero, which means that live attempts are not waited for.
        self.positive("timeout", definition.timeout);
        self.positive("cleanup_timeout", definition.cleanup_timeout);
    }

    fn defaults(&mut self) {
        let Defaults { queue, retry, timeouts } = self.defaults;
        if let Some(queue) = queue {
            self.queue("defaults.queue", queue);
        }
        if let Some(retry) = retry {
            policy::check(retry, "defaults.retry", &mut self.issues);
        }
        self.timeouts("defaults", timeouts, &Timeouts::default());
    }

    fn step_id(&mut self, path: &str, id: &StepId) {
        let text = id.as_str();
        let is_id = text.starts_with(|first: char| first.is_ascii_lowercase())
            && text.len() <= STEP_ID_BYTES_MAX
            && text.bytes().all(|letter| matches!(letter, b'a'..=b'z' | b'0'..=b'9' | b'_'));
        let path = format!("{path}.id");
        if !is_id {
            let message = format!(
                "`{text}` is not a valid step id: use a lowercase letter, then lowercase letters, digits \
                 and `_`, at most {STEP_ID_BYTES_MAX} characters, such as `charge_card`"
            );
            self.issues.add(path, IssueCode::StepIdInvalid, message);
        } else if RESERVED.contains(&text) {
            let message = format!(
                "`{text}` is a reserved word of CEL: use another id, such as `{text}_step`"
            );
            self.issues.add(path, IssueCode::StepIdReserved, message);
        }
    }

    fn step(
        &mut self,
        path: &str,
        step: &definition::Step,
        scope: &Scope<'_>,
        undo_scope: &Scope<'_>,
    ) -> StepPlan {
        self.text(&format!("{path}.description"), &step.description, DESCRIPTION_BYTES_MAX);
        let when = step.when.as_ref().and_then(|when| {
            self.issues.expressions(&format!("{path}.when"), Condition::compile(when, scope))
        });
        if step.allow_warning && step.on_error != OnError::Ignore {
            let message = "has no effect without `on_error: IGNORE`: add that or remove this field"
                .to_owned();
            let path = format!("{path}.allow_warning");
            self.issues.add(path, IssueCode::AllowWarningWithoutIgnore, message);
        }
        let definition::StepKind::Task(task) = &step.kind;
        let retry = self.retry(&format!("{path}.retry"), step.retry.as_ref());
        let task = self.task(&format!("{path}.task"), task, retry, scope);
        let compensate = step.compensate.as_ref().map(|compensate| {
            let path = format!("{path}.compensate");
            let retry = self.retry(&format!("{path}.retry"), compensate.retry.as_ref());
            let task = self.task(&format!("{path}.task"), &compensate.task, retry, undo_scope);
            CompensationPlan { task, only_completed: compensate.only_completed }
        });
        StepPlan {
            id: step.id.clone(),
            path: StepPath::from(&step.id),
            kind: StepKind::Task(task),
            when,
            on_error: step.on_error,
            allow_warning: step.allow_warning,
            compensate,
        }
    }

    fn retry(&mut self, path: &str, own: Option<&RetryPolicy>) -> RetryPolicy {
        if let Some(own) = own {
            policy::check(own, path, &mut self.issues);
        }
        own.or(self.defaults.retry.as_ref()).cloned().unwrap_or_default()
    }

    fn task(
        &mut self,
        path: &str,
        task: &definition::Task,
        retry: RetryPolicy,
        scope: &Scope<'_>,
    ) -> TaskPlan {
        if task.task_type.trim().is_empty() {
            let message = "a task needs a type, such as `payment.charge`".to_owned();
            self.issues.add(format!("{path}.type"), IssueCode::Required, message);
        }
        self.text(&format!("{path}.type"), &task.task_type, TASK_TYPE_BYTES_MAX);
        if let Some(queue) = &task.queue {
            self.queue(&format!("{path}.queue"), queue);
        }
        if !(-PRIORITY_MAX..=PRIORITY_MAX).contains(&task.priority) {
            let message = format!(
                "{} is out of range: use a whole number from -{PRIORITY_MAX} to {PRIORITY_MAX}",
                task.priority
            );
            let path = format!("{path}.priority");
            self.issues.add(path, IssueCode::PriorityOutOfRange, message);
        }
        let input = task.input.as_ref().and_then(|input| {
            self.issues.expressions(&format!("{path}.input"), Template::compile(input, scope))
        });
        let timeouts = self.timeouts(path, &task.timeouts, &self.defaults.timeouts);
        let queue = task.queue.as_ref().or(self.defaults.queue.as_ref());
        TaskPlan {
            task_type: task.task_type.clone(),
            queue: queue.map_or(QUEUE, String::as_str).to_owned(),
            input,
            schedule_to_start: timeouts.schedule_to_start,
            start_to_close: timeouts.start_to_close.unwrap_or_else(|| {
                // The built-in value must not contradict a timeout that the definition sets.
                timeouts.schedule_to_close.map_or(START_TO_CLOSE, |all| all.min(START_TO_CLOSE))
            }),
            schedule_to_close: timeouts.schedule_to_close,
            heartbeat: timeouts.heartbeat,
            priority: task.priority,
            delivery: task.delivery,
            retry,
        }
    }

    /// The timeouts of a task, with inherited values filled in. Reports wrong values only among the task's
    /// own timeouts, but contradictions between any of them.
    fn timeouts(&mut self, path: &str, own: &Timeouts, inherited: &Timeouts) -> Timeouts {
        self.positive(&format!("{path}.schedule_to_start"), own.schedule_to_start);
        self.positive(&format!("{path}.start_to_close"), own.start_to_close);
        self.positive(&format!("{path}.schedule_to_close"), own.schedule_to_close);
        self.positive(&format!("{path}.heartbeat"), own.heartbeat);
        let all = Timeouts {
            schedule_to_start: own.schedule_to_start.or(inherited.schedule_to_start),
            start_to_close: own.start_to_close.or(inherited.start_to_close),
            schedule_to_close: own.schedule_to_close.or(inherited.schedule_to_close),
            heartbeat: own.heartbeat.or(inherited.heartbeat),
        };
        // Contradictions among the inherited values have been reported for the defaults.
        if own == &Timeouts::default() {
            return all;
        }
        let mut contradiction = |field: &str, message: String| {
            self.issues.add(format!("{path}.{field}"), IssueCode::TimeoutsContradict, message);
        };
        if let (Some(one), Some(whole)) = (all.start_to_close, all.schedule_to_close)
            && one > whole
        {
            let message = format!(
                "{one:?} is longer than schedule_to_close, which limits all attempts together to {whole:?}"
            );
            contradiction("start_to_close", message);
        }
        if let (Some(wait), Some(whole)) = (all.schedule_to_start, all.schedule_to_close)
            && wait > whole
        {
            let message = format!(
                "{wait:?} is longer than schedule_to_close, which limits the whole task to {whole:?}"
            );
            contradiction("schedule_to_start", message);
        }
        let start_to_close = all.start_to_close.unwrap_or(START_TO_CLOSE);
        if let Some(heartbeat) = all.heartbeat.filter(|heartbeat| *heartbeat > start_to_close) {
            let message = format!(
                "{heartbeat:?} is longer than start_to_close, which ends an attempt after {start_to_close:?}"
            );
            contradiction("heartbeat", message);
        }
        all
    }

    fn positive(&mut self, path: &str, duration: Option<Duration>) {
        if duration == Some(Duration::ZERO) {
            let message = "must be longer than zero, such as 30s".to_owned();
            self.issues.add(path.to_owned(), IssueCode::DurationInvalid, message);
        }
    }

    fn queue(&mut self, path: &str, queue: &str) {
        if queue.trim().is_empty() {
            let message =
                "a queue name must not be blank: use a name such as `payments`".to_owned();
            self.issues.add(path.to_owned(), IssueCode::Required, message);
        }
        self.text(path, queue, QUEUE_BYTES_MAX);
    }

    fn text(&mut self, path: &str, text: &str, max: usize) {
        if text.len() > max {
            let message = format!("{} bytes, at most {max} are allowed", text.len());
            self.issues.add(path.to_owned(), IssueCode::TooLong, message);
        }
    }
}

/// Path patterns of the tasks with `schedule_to_close`, compensations included.
fn timed(tree: &Tree, nodes: &[StepPlan]) -> Vec<StepPath> {
    let mut timed = Vec::new();
    for (node, step) in tree.nodes().zip(nodes) {
        let pattern = tree.pattern(node);
        if step.kind.task().is_some_and(|task| task.schedule_to_close.is_some()) {
            timed.push(pattern.clone());
        }
        if step.compensate.as_ref().is_some_and(|undo| undo.task.schedule_to_close.is_some()) {
            timed.push(pattern.compensation());
        }
    }
    timed
}

/// The steps of a block, each with its field path, such as `steps[2]`.
fn paths<'a>(
    field: &'static str,
    steps: &'a [definition::Step],
) -> impl Iterator<Item = (String, &'a definition::Step)> {
    steps.iter().enumerate().map(move |(index, step)| (format!("{field}[{index}]"), step))
}
