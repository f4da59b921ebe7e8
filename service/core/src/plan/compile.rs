//! Compiles a definition into a plan and collects all of its issues on the way.

use std::time::Duration;

use super::inside::{Inner, count, parts, paths};
use super::issue::{Issue, IssueCode, Issues};
use super::{
    CANCEL_GRACE, CLEANUP_TIMEOUT, CatchPlan, CompensationPlan, ForEachPlan, ParallelPlan, Plan,
    QUEUE, RaisePlan, START_TO_CLOSE, StepKind, StepPlan, TaskPlan, branches, policy,
};
use crate::definition::{self, Block, Defaults, OnError, Timeouts, Workflow};
use crate::error::{builtin, is_error_type, type_matches};
use crate::event::BLOCKS;
use crate::expression::{Condition, Scope, Template, Trust};
use crate::id::{StepId, StepPath};
use crate::limits::{
    DESCRIPTION_BYTES_MAX, ERROR_TYPE_BYTES_MAX, NAME_BYTES_MAX, NESTING_MAX, PRIORITY_MAX,
    QUEUE_BYTES_MAX, STEP_ID_BYTES_MAX, STEPS_MAX, TASK_TYPE_BYTES_MAX,
};
use crate::retry::RetryPolicy;
use crate::state::Part;
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
    let mut compiler = Compiler { issues, defaults: &definition.defaults, is_cut: false };
    let plan = compiler.workflow(definition, version);
    let issues = compiler.issues.found;
    if issues.is_empty() { Ok(plan) } else { Err(issues) }
}

/// The plan that the compiler returns is complete only if it found no issues.
struct Compiler<'a> {
    issues: Issues,
    defaults: &'a Defaults,
    /// Some steps are nested too deep, and were left out.
    is_cut: bool,
}

/// What is around a step.
#[derive(Clone, Copy)]
struct Surroundings {
    /// Expressions may read `error`.
    has_error: bool,
    in_handler: bool,
    in_cleanup: bool,
}

/// The compiled steps so far, in the order of the tree.
struct Steps<'t> {
    tree: &'t Tree,
    nodes: Vec<StepPlan>,
    outputs: Vec<Option<Template>>,
    has_blocks: bool,
}

impl<'t> Steps<'t> {
    fn new(tree: &'t Tree) -> Self {
        let outputs = std::iter::repeat_with(|| None).take(tree.scope_count()).collect();
        Self { tree, nodes: Vec::new(), outputs, has_blocks: false }
    }
}

impl Compiler<'_> {
    fn workflow(&mut self, definition: &Workflow, version: u32) -> Plan {
        self.name(definition);
        self.durations(definition);
        self.defaults();
        if definition.steps.steps.is_empty() {
            self.no_steps("steps");
        }
        let mut plan = Plan {
            name: definition.name.clone(),
            version,
            tree: Tree::default(),
            nodes: Vec::new(),
            timed: Vec::new(),
            timeout: definition.timeout,
            cleanup_timeout: Some(definition.cleanup_timeout.unwrap_or(CLEANUP_TIMEOUT)),
            cancel_grace: definition.cancel_grace.unwrap_or(CANCEL_GRACE),
            outputs: Vec::new(),
            needs_format: 1,
        };
        let count = count(&definition.steps.steps)
            + count(&definition.on_failure)
            + count(&definition.finally);
        if count > STEPS_MAX {
            let message = format!("{count} steps, at most {STEPS_MAX} are allowed");
            self.issues.add("steps".into(), IssueCode::TooMany, message);
            if self.issues.trust == Trust::Unchecked {
                return plan;
            }
        }
        // All steps are added to the tree first. An expression may name a step that comes later in the
        // definition, even if only to be rejected for it.
        let mut tree = Tree::default();
        let roots = [
            ("steps", &definition.steps.steps, ScopeId::STEPS),
            ("on_failure", &definition.on_failure, ScopeId::ON_FAILURE),
            ("finally", &definition.finally, ScopeId::FINALLY),
        ];
        for (field, steps, scope) in roots {
            self.place(&mut tree, field, steps, scope, 0);
        }
        if self.is_cut {
            // Steps that are nested too deep have not been placed, so they cannot be compiled.
            return plan;
        }
        let mut steps = Steps::new(&tree);
        let root = Surroundings { has_error: false, in_handler: false, in_cleanup: false };
        self.block("", &definition.steps, ScopeId::STEPS, root, &mut steps);
        let root = Surroundings { has_error: true, in_handler: false, in_cleanup: true };
        let on_failure = &definition.on_failure;
        self.steps("on_failure", on_failure, ScopeId::ON_FAILURE, root, &mut steps);
        self.steps("finally", &definition.finally, ScopeId::FINALLY, root, &mut steps);
        steps.has_blocks |= !on_failure.is_empty();
        let Steps { nodes, outputs, has_blocks, .. } = steps;
        plan.timed = timed(&tree, &nodes);
        (plan.tree, plan.nodes, plan.outputs) = (tree, nodes, outputs);
        if has_blocks {
            plan.needs_format = BLOCKS;
        }
        plan
    }

    fn no_steps(&mut self, path: &str) {
        let message = "at least one step is required".to_owned();
        self.issues.add(path.into(), IssueCode::Required, message);
    }

    /// Adds the steps of a scope to the tree, and those inside them.
    fn place(
        &mut self,
        tree: &mut Tree,
        field: &str,
        steps: &[definition::Step],
        scope: ScopeId,
        depth: usize,
    ) {
        if depth > NESTING_MAX {
            let message = format!(
                "blocks are nested deeper than {NESTING_MAX} levels: move some into a step before"
            );
            self.issues.add(field.to_owned(), IssueCode::TooDeep, message);
            if self.issues.trust == Trust::Unchecked {
                self.is_cut = true;
                return;
            }
        }
        for (path, step) in paths(field, steps) {
            self.step_id(&path, &step.id);
            if tree.find(step.id.as_str()).is_some() {
                let message = format!("another step already has the id `{}`", step.id);
                self.issues.add(format!("{path}.id"), IssueCode::StepIdTaken, message);
            }
            let node = tree.add_step(scope, step.id.clone());
            for Inner { field, part, key, block } in parts(step) {
                let scope = tree.add_scope(node, part, key);
                self.place(tree, &format!("{path}.{field}.steps"), &block.steps, scope, depth + 1);
            }
            if let definition::StepKind::Parallel(own) = &step.kind {
                branches::order(tree, node, own);
            }
        }
    }

    /// Compiles the steps of a block and its output. `path` is that of the block, followed by a dot unless
    /// it is empty.
    fn block(
        &mut self,
        path: &str,
        block: &Block,
        id: ScopeId,
        around: Surroundings,
        into: &mut Steps<'_>,
    ) {
        self.steps(&format!("{path}steps"), &block.steps, id, around, into);
        if let Some(output) = &block.output {
            let scope = self.scope(into.tree, Place::end_of(id), around.has_error);
            let compiled = Template::compile(output, &scope);
            into.outputs[id.index()] = self.issues.expressions(&format!("{path}output"), compiled);
        }
    }

    fn steps(
        &mut self,
        field: &str,
        steps: &[definition::Step],
        id: ScopeId,
        around: Surroundings,
        into: &mut Steps<'_>,
    ) {
        for (position, (path, step)) in paths(field, steps).enumerate() {
            let place = Place { scope: id, position };
            let plan = self.step(&path, step, place, around, into);
            let node = into.tree.children(id)[position];
            into.nodes.push(plan);
            let is_return = matches!(step.kind, definition::StepKind::Return { .. });
            if is_return && step.when.is_none() && position + 1 < steps.len() {
                let message = "the steps after an unconditional `return` never run: give it a `when`, or remove them";
                self.misplaced(format!("{path}.return"), message);
            }
            let placed = into.tree;
            for (Inner { field, part, block, .. }, (_, scope)) in
                parts(step).zip(placed.parts(node))
            {
                let is_handler = matches!(part, Part::Handler(_));
                let around = Surroundings {
                    has_error: around.has_error || is_handler,
                    in_handler: around.in_handler || is_handler,
                    ..around
                };
                self.block(&format!("{path}.{field}."), block, *scope, around, into);
            }
        }
    }

    fn scope<'t>(&self, tree: &'t Tree, place: Place, has_error: bool) -> Scope<'t> {
        Scope { tree, place, has_error, trust: self.issues.trust }
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
        self.id(&format!("{path}.id"), "step", id);
    }

    /// Checks the id of a step or a branch.
    fn id(&mut self, path: &str, of: &str, id: &StepId) {
        let text = id.as_str();
        let is_id = text.starts_with(|first: char| first.is_ascii_lowercase())
            && text.len() <= STEP_ID_BYTES_MAX
            && text.bytes().all(|letter| matches!(letter, b'a'..=b'z' | b'0'..=b'9' | b'_'));
        let path = path.to_owned();
        if !is_id {
            let message = format!(
                "`{text}` is not a valid {of} id: use a lowercase letter, then lowercase letters, digits \
                 and `_`, at most {STEP_ID_BYTES_MAX} characters, such as `charge_card`"
            );
            self.issues.add(path, IssueCode::StepIdInvalid, message);
        } else if RESERVED.contains(&text) {
            let message = format!(
                "`{text}` is a reserved word of CEL: use another id, such as `{text}_{of}`"
            );
            self.issues.add(path, IssueCode::StepIdReserved, message);
        }
    }

    /// Compiles a step, without the steps inside it.
    fn step(
        &mut self,
        path: &str,
        step: &definition::Step,
        place: Place,
        around: Surroundings,
        into: &mut Steps<'_>,
    ) -> StepPlan {
        let scope = self.scope(into.tree, place, around.has_error);
        self.text(&format!("{path}.description"), &step.description, DESCRIPTION_BYTES_MAX);
        let when = step.when.as_ref().and_then(|when| {
            self.issues.expressions(&format!("{path}.when"), Condition::compile(when, &scope))
        });
        if step.allow_warning && step.on_error != OnError::Ignore {
            let message = "has no effect without `on_error: IGNORE`: add that or remove this field"
                .to_owned();
            let path = format!("{path}.allow_warning");
            self.issues.add(path, IssueCode::AllowWarningWithoutIgnore, message);
        }
        if step.timeout.is_some() && !step.kind.has_blocks() {
            let message = "only a step that runs other steps can have `timeout`: a task has `schedule_to_close`, \
                           which limits it with all its retries";
            self.misplaced(format!("{path}.timeout"), message);
        }
        self.positive(&format!("{path}.timeout"), step.timeout);
        into.has_blocks |= step.kind.task().is_none() || !step.catch.is_empty();
        let kind = self.kind(path, step, &scope, around);
        // A plan with an issue is never executed.
        let kind = kind.unwrap_or(StepKind::Try);
        let catch = self.catch(path, &step.catch, &self.scope(into.tree, place, true));
        StepPlan {
            id: step.id.clone(),
            path: into.tree.own_path(into.tree.children(place.scope)[place.position]),
            kind,
            when,
            timeout: step.timeout,
            catch,
            on_error: step.on_error,
            allow_warning: step.allow_warning,
            compensate: self.compensate(path, step, place, around, into.tree),
        }
    }

    /// None if the step has an issue that leaves nothing to execute.
    fn kind(
        &mut self,
        path: &str,
        step: &definition::Step,
        scope: &Scope<'_>,
        around: Surroundings,
    ) -> Option<StepKind> {
        use definition::{Fail, StepKind as Kind};
        if step.kind.task().is_none() && step.retry.is_some() {
            let message =
                "only a task can have `retry`: remove it, or put it on the tasks inside the step";
            self.misplaced(format!("{path}.retry"), message);
        }
        Some(match &step.kind {
            Kind::Task(task) => {
                let retry = self.retry(&format!("{path}.retry"), step.retry.as_ref());
                StepKind::Task(self.task(&format!("{path}.task"), task, retry, scope))
            }
            Kind::Set(value) => {
                StepKind::Set(self.template(&format!("{path}.set"), value, scope)?)
            }
            Kind::Fail(Fail::Raise(raise)) => self.raise(&format!("{path}.fail"), raise, scope)?,
            Kind::Fail(Fail::Rethrow) => {
                if !around.in_handler {
                    let message = "there is no error to raise again: use `rethrow` in a `catch`, or give a `type`";
                    self.misplaced(format!("{path}.fail.rethrow"), message);
                }
                StepKind::Rethrow
            }
            Kind::Return { output } => StepKind::Return(match output {
                Some(output) => {
                    Some(self.template(&format!("{path}.return.output"), output, scope)?)
                }
                None => None,
            }),
            Kind::Switch(switch) => {
                if switch.cases.is_empty() {
                    let message = "at least one case is required".to_owned();
                    self.issues.add(format!("{path}.switch.cases"), IssueCode::Required, message);
                }
                let cases = switch.cases.iter().enumerate().map(|(index, case)| {
                    let path = format!("{path}.switch.cases[{index}].when");
                    self.issues.expressions(&path, Condition::compile(&case.when, scope))
                });
                // All cases are compiled, so that the issues of all of them are reported.
                let cases: Vec<_> = cases.collect();
                StepKind::Switch(cases.into_iter().collect::<Option<_>>()?)
            }
            Kind::Try(body) => {
                if body.steps.is_empty() {
                    self.no_steps(&format!("{path}.try.steps"));
                }
                StepKind::Try
            }
            Kind::Parallel(parallel) => self.parallel(path, parallel),
            Kind::ForEach(each) => self.for_each(path, each, scope)?,
        })
    }

    fn parallel(&mut self, path: &str, parallel: &definition::Parallel) -> StepKind {
        let path = format!("{path}.parallel");
        if parallel.branches.is_empty() {
            let message = "at least one branch is required".to_owned();
            self.issues.add(format!("{path}.branches"), IssueCode::Required, message);
        }
        for (id, branch) in &parallel.branches {
            let path = format!("{path}.branches.{id}");
            self.id(&path, "branch", id);
            if branch.block.steps.is_empty() {
                self.no_steps(&format!("{path}.steps"));
            }
            for (index, earlier) in branch.after.iter().enumerate() {
                let path = format!("{path}.after[{index}]");
                if !parallel.branches.contains_key(earlier.as_str()) {
                    let message = format!("this `parallel` has no branch `{earlier}`");
                    self.issues.add(path, IssueCode::BranchUnknown, message);
                } else if branch.after[..index].contains(earlier) {
                    let message = format!("`{earlier}` is named twice: remove one of the two");
                    self.issues.add(path, IssueCode::BranchRepeated, message);
                }
            }
        }
        if let Some(cycle) = branches::cycle(parallel) {
            let path = format!("{path}.branches.{}.after", cycle[0]);
            let round: Vec<_> = cycle.iter().chain(&cycle[..1]).map(|id| id.as_str()).collect();
            let message = format!(
                "these branches wait for each other, so none of them can begin: {}",
                round.join(" after ")
            );
            self.issues.add(path, IssueCode::BranchCycle, message);
        }
        let (mode, concurrency) = (parallel.mode, parallel.concurrency);
        StepKind::Parallel(ParallelPlan { mode, concurrency })
    }

    /// None if the expression of the items cannot be compiled.
    fn for_each(
        &mut self,
        path: &str,
        each: &definition::ForEach,
        scope: &Scope<'_>,
    ) -> Option<StepKind> {
        let path = format!("{path}.for_each");
        if each.block.steps.is_empty() {
            self.no_steps(&format!("{path}.steps"));
        }
        let item_key = each.item_key.as_ref().map(|key| match item_fields(key) {
            Some(fields) => fields,
            None => {
                let message = format!(
                    "`{key}` is no field of an item: use `item`, or a field of it such as `item.sku`"
                );
                self.issues.add(format!("{path}.item_key"), IssueCode::ItemKeyInvalid, message);
                Vec::new()
            }
        });
        let field = format!("{path}.items");
        if each.items.trim().is_empty() {
            let message = "an expression is required, such as `input.lines`".to_owned();
            self.issues.add(field, IssueCode::Required, message);
            return None;
        }
        let template = serde_json::Value::from(format!("${{{}}}", each.items)).to_string();
        let items = self.template(&field, &template, scope)?;
        let (concurrency, mode) = (each.concurrency.unwrap_or(1).max(1), each.mode);
        Some(StepKind::ForEach(ForEachPlan { items, item_key, concurrency, mode }))
    }

    fn raise(
        &mut self,
        path: &str,
        raise: &definition::Raise,
        scope: &Scope<'_>,
    ) -> Option<StepKind> {
        let definition::Raise { error_type, message, details, non_retryable } = raise;
        let type_path = format!("{path}.type");
        if error_type.trim().is_empty() {
            let message = "an error needs a type, such as `order.rejected`".to_owned();
            self.issues.add(type_path, IssueCode::Required, message);
        } else if type_matches(builtin::PREFIX, error_type) {
            let message = format!(
                "`{error_type}` is reserved for errors of Recoup itself: use a type such as `order.rejected`"
            );
            self.issues.add(type_path, IssueCode::ErrorTypeReserved, message);
        } else if !is_error_type(error_type) {
            let message = format!(
                "`{error_type:.ERROR_TYPE_BYTES_MAX$}` is not a valid error type: use letters, digits, `_` and `-`, \
                 with dots between them, such as `order.rejected`"
            );
            self.issues.add(type_path, IssueCode::ErrorTypeInvalid, message);
        } else {
            self.text(&type_path, error_type, ERROR_TYPE_BYTES_MAX);
        }
        let text = serde_json::Value::from(message.as_str()).to_string();
        let message = self.template(&format!("{path}.message"), &text, scope);
        let details = details
            .as_ref()
            .map(|details| self.template(&format!("{path}.details"), details, scope));
        let details = match details {
            Some(compiled) => Some(compiled?),
            None => None,
        };
        let (error_type, non_retryable) = (error_type.clone(), *non_retryable);
        Some(StepKind::Raise(RaisePlan { error_type, message: message?, details, non_retryable }))
    }

    fn misplaced(&mut self, path: String, message: &str) {
        self.issues.add(path, IssueCode::Misplaced, message.to_owned());
    }

    fn catch(
        &mut self,
        path: &str,
        catch: &[definition::Catch],
        scope: &Scope<'_>,
    ) -> Vec<CatchPlan> {
        let mut plans: Vec<CatchPlan> = Vec::with_capacity(catch.len());
        for (index, own) in catch.iter().enumerate() {
            let path = format!("{path}.catch[{index}]");
            let types = format!("{path}.error_types");
            policy::types(&own.error_types, &types, IssueCode::ErrorTypeInvalid, &mut self.issues);
            let before = index.checked_sub(1).map(|before| &catch[before]);
            if before.is_some_and(|before| before.error_types.is_empty() && before.when.is_none()) {
                let message = "no error reaches this handler, because the one before takes every error: put this one first, \
                               or give the other one `error_types` or `when`";
                self.issues.add(path.clone(), IssueCode::HandlerUnreachable, message.to_owned());
            }
            let when = own.when.as_ref().and_then(|when| {
                self.issues.expressions(&format!("{path}.when"), Condition::compile(when, scope))
            });
            let (error_types, match_on) = (own.error_types.clone(), own.match_on);
            plans.push(CatchPlan { error_types, match_on, when });
        }
        plans
    }

    fn compensate(
        &mut self,
        path: &str,
        step: &definition::Step,
        place: Place,
        around: Surroundings,
        tree: &Tree,
    ) -> Option<CompensationPlan> {
        let compensate = step.compensate.as_ref()?;
        let path = format!("{path}.compensate");
        if around.in_cleanup {
            let message =
                "a step of `on_failure` or `finally` is never compensated: remove `compensate`"
                    .to_owned();
            self.issues.add(path.clone(), IssueCode::CompensateInCleanup, message);
        } else if step.kind.task().is_none() {
            let message = "only a task can have `compensate`: remove it, or put it on the tasks inside the step";
            self.misplaced(path.clone(), message);
        }
        // Compensations run when no step runs any more, so they may also read the later steps of their scope.
        let end = if around.in_cleanup { place } else { Place::end_of(place.scope) };
        let scope = self.scope(tree, end, true);
        let retry = self.retry(&format!("{path}.retry"), compensate.retry.as_ref());
        let task = self.task(&format!("{path}.task"), &compensate.task, retry, &scope);
        Some(CompensationPlan { task, only_completed: compensate.only_completed })
    }

    fn template(&mut self, path: &str, json: &str, scope: &Scope<'_>) -> Option<Template> {
        self.issues.expressions(path, Template::compile(json, scope))
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

/// The names after `item`; none if the text has another form.
fn item_fields(key: &str) -> Option<Vec<String>> {
    let mut names = key.trim().split('.');
    let is_name = |name: &str| {
        name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
            && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
    };
    let is_of_item = names.next() == Some("item");
    let fields: Vec<String> = names.map(Into::into).collect();
    (is_of_item && fields.iter().all(|name| is_name(name))).then_some(fields)
}
