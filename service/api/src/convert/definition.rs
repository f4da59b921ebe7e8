//! Converts definitions.

use recoup_core::definition::{
    Block, Compensate, Defaults, Delivery, OnError, Step, StepKind, Task, Timeouts, Workflow,
};
use recoup_core::limits::clean;
use recoup_core::plan::{Issue, IssueCode};
use recoup_proto::v1;

use super::reader::Reader;
use super::{retry, time};

super::to_proto!(on_error: OnError => v1::OnError: Fail Ignore);
super::from_proto!(on_error_from: v1::OnError => OnError: Fail Ignore);
super::to_proto!(delivery: Delivery => v1::Delivery: AtLeastOnce AtMostOnce);
super::from_proto!(delivery_from: v1::Delivery => Delivery: AtLeastOnce AtMostOnce);

/// Reads a definition. Issues are reported for values that core's types cannot hold. The definition is
/// complete only if there are none.
pub fn from_proto(definition: &v1::WorkflowDefinition) -> (Workflow, Vec<Issue>) {
    let mut reader = Reader::default();
    let workflow = reader.workflow(definition);
    (workflow, reader.into_issues())
}

/// Rewrites the templates of a definition as a definition file would give them: without spaces and with
/// sorted keys. So two messages that differ only in how their templates are written count as the same
/// definition. Text that is not JSON is left as it is; it is reported as an issue.
pub fn canonical_templates(mut definition: v1::WorkflowDefinition) -> v1::WorkflowDefinition {
    let blocks = [&mut definition.steps, &mut definition.finally];
    let tasks = blocks.into_iter().flatten().flat_map(|step| {
        let own = step.kind.as_mut().map(|v1::step::Kind::Task(task)| task);
        let compensation = step.compensate.as_mut().and_then(|compensate| compensate.kind.as_mut());
        own.into_iter().chain(compensation.map(|v1::compensate::Kind::Task(task)| task))
    });
    let inputs = tasks.filter_map(|task| task.input.as_mut());
    for template in inputs.chain(definition.output.as_mut()) {
        if let Ok(value) = template.value() {
            *template = v1::Template::new(&value);
        }
    }
    definition
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| clean(text).into_owned())
}

fn template(template: Option<&v1::Template>) -> Option<String> {
    template.map(|template| template.json.clone())
}

impl Reader {
    fn workflow(&mut self, definition: &v1::WorkflowDefinition) -> Workflow {
        let defaults = definition.defaults.as_ref();
        Workflow {
            name: definition.name.as_str().into(),
            description: clean(&definition.description).into_owned(),
            defaults: defaults.map(|defaults| self.defaults(defaults)).unwrap_or_default(),
            steps: self.block(&definition.steps, "steps"),
            finally: self.block(&definition.finally, "finally"),
            timeout: self.duration(definition.timeout, "", "timeout"),
            cleanup_timeout: self.duration(definition.cleanup_timeout, "", "cleanup_timeout"),
            cancel_grace: self.duration(definition.cancel_grace, "", "cancel_grace"),
            output: template(definition.output.as_ref()),
        }
    }

    fn defaults(&mut self, defaults: &v1::WorkflowDefaults) -> Defaults {
        let path = "defaults";
        let retry = defaults.retry.as_ref();
        Defaults {
            queue: some(&defaults.queue),
            retry: retry.map(|retry| self.policy(retry, "defaults.retry")),
            timeouts: Timeouts {
                schedule_to_start: self.duration(
                    defaults.schedule_to_start,
                    path,
                    "schedule_to_start",
                ),
                start_to_close: self.duration(defaults.start_to_close, path, "start_to_close"),
                schedule_to_close: self.duration(
                    defaults.schedule_to_close,
                    path,
                    "schedule_to_close",
                ),
                heartbeat: self.duration(defaults.heartbeat, path, "heartbeat"),
            },
        }
    }

    fn block(&mut self, steps: &[v1::Step], path: &str) -> Block {
        let steps = steps.iter().enumerate();
        Block(steps.map(|(index, step)| self.step(step, &format!("{path}[{index}]"))).collect())
    }

    fn step(&mut self, step: &v1::Step, path: &str) -> Step {
        let kind = match &step.kind {
            Some(v1::step::Kind::Task(task)) => self.task(task, &format!("{path}.task")),
            None => {
                let message = "a step needs a task, such as `task: {type: payment.charge}`";
                self.issue(format!("{path}.task"), IssueCode::Required, message);
                Task::default()
            }
        };
        let retry = step.retry.as_ref();
        let compensate = step.compensate.as_ref();
        Step {
            id: step.id.as_str().into(),
            description: clean(&step.description).into_owned(),
            kind: StepKind::Task(kind),
            when: some(&step.when),
            retry: retry.map(|retry| self.policy(retry, &format!("{path}.retry"))),
            on_error: self
                .known(step.on_error, path, "on_error", on_error_from)
                .unwrap_or(OnError::Fail),
            allow_warning: step.allow_warning,
            compensate: compensate
                .map(|compensate| self.compensate(compensate, &format!("{path}.compensate"))),
        }
    }

    fn compensate(&mut self, compensate: &v1::Compensate, path: &str) -> Compensate {
        let task = match &compensate.kind {
            Some(v1::compensate::Kind::Task(task)) => self.task(task, &format!("{path}.task")),
            None => {
                let message = "a compensation needs a task, such as `task: {type: payment.refund}`";
                self.issue(format!("{path}.task"), IssueCode::Required, message);
                Task::default()
            }
        };
        let retry = compensate.retry.as_ref();
        Compensate {
            task,
            retry: retry.map(|retry| self.policy(retry, &format!("{path}.retry"))),
            only_completed: compensate.only_completed,
        }
    }

    fn task(&mut self, task: &v1::TaskStep, path: &str) -> Task {
        Task {
            task_type: clean(&task.r#type).into_owned(),
            queue: some(&task.queue),
            input: template(task.input.as_ref()),
            timeouts: Timeouts {
                schedule_to_start: self.duration(task.schedule_to_start, path, "schedule_to_start"),
                start_to_close: self.duration(task.start_to_close, path, "start_to_close"),
                schedule_to_close: self.duration(task.schedule_to_close, path, "schedule_to_close"),
                heartbeat: self.duration(task.heartbeat, path, "heartbeat"),
            },
            priority: task.priority,
            delivery: self
                .known(task.delivery, path, "delivery", delivery_from)
                .unwrap_or(Delivery::AtLeastOnce),
        }
    }
}

/// Converts a stored definition. Schedules are filled in with the defaults of the values that they left
/// unset.
pub fn to_proto(workflow: &Workflow) -> v1::WorkflowDefinition {
    let has_defaults = workflow.defaults != Defaults::default();
    v1::WorkflowDefinition {
        name: workflow.name.as_str().to_owned(),
        description: workflow.description.clone(),
        defaults: has_defaults.then(|| defaults(&workflow.defaults)),
        steps: workflow.steps.0.iter().map(step).collect(),
        finally: workflow.finally.0.iter().map(step).collect(),
        timeout: workflow.timeout.map(time::duration),
        cleanup_timeout: workflow.cleanup_timeout.map(time::duration),
        cancel_grace: workflow.cancel_grace.map(time::duration),
        output: workflow.output.clone().map(|json| v1::Template { json }),
    }
}

fn defaults(defaults: &Defaults) -> v1::WorkflowDefaults {
    v1::WorkflowDefaults {
        queue: defaults.queue.clone().unwrap_or_default(),
        retry: defaults.retry.as_ref().map(retry::to_proto),
        schedule_to_start: defaults.timeouts.schedule_to_start.map(time::duration),
        start_to_close: defaults.timeouts.start_to_close.map(time::duration),
        schedule_to_close: defaults.timeouts.schedule_to_close.map(time::duration),
        heartbeat: defaults.timeouts.heartbeat.map(time::duration),
    }
}

fn step(step: &Step) -> v1::Step {
    let StepKind::Task(own) = &step.kind;
    v1::Step {
        id: step.id.as_str().to_owned(),
        when: step.when.clone().unwrap_or_default(),
        retry: step.retry.as_ref().map(retry::to_proto),
        on_error: match step.on_error {
            OnError::Fail => v1::OnError::Unspecified.into(),
            other => on_error(other).into(),
        },
        allow_warning: step.allow_warning,
        compensate: step.compensate.as_ref().map(|compensate| v1::Compensate {
            kind: Some(v1::compensate::Kind::Task(task(&compensate.task))),
            retry: compensate.retry.as_ref().map(retry::to_proto),
            only_completed: compensate.only_completed,
        }),
        description: step.description.clone(),
        kind: Some(v1::step::Kind::Task(task(own))),
    }
}

fn task(task: &Task) -> v1::TaskStep {
    v1::TaskStep {
        r#type: task.task_type.clone(),
        queue: task.queue.clone().unwrap_or_default(),
        input: task.input.clone().map(|json| v1::Template { json }),
        schedule_to_start: task.timeouts.schedule_to_start.map(time::duration),
        start_to_close: task.timeouts.start_to_close.map(time::duration),
        schedule_to_close: task.timeouts.schedule_to_close.map(time::duration),
        heartbeat: task.timeouts.heartbeat.map(time::duration),
        priority: task.priority,
        delivery: match task.delivery {
            Delivery::AtLeastOnce => v1::Delivery::Unspecified.into(),
            other => delivery(other).into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use recoup_proto as proto;
    use recoup_proto::{source, v1::DefinitionFormat};

    use super::*;

    fn parsed(text: &str) -> v1::WorkflowDefinition {
        source::parse(text, DefinitionFormat::Yaml).expect("it is well formed").0
    }

    #[test]
    fn definition_round_trips_unchanged() {
        let given = parsed(
            r"
name: order
description: buys
timeout: 1h
cancel_grace: 0s
defaults: {queue: shop, start_to_close: 20s, retry: {constant: {interval: 1s}, jitter: 0}}
output: {total: '${input.total}'}
steps:
- id: charge
  description: takes the money
  when: input.total > 0
  on_error: IGNORE
  allow_warning: true
  task: {type: payment.charge, input: {amount: 18446744073709551615}, priority: -3, delivery: AT_MOST_ONCE, heartbeat: 5s}
  retry:
    exponential: {initial_interval: 1s, backoff_coefficient: 3, max_interval: 50s}
    max_attempts: 7
    match_on: ANY_CAUSE
    non_retryable_error_types: [payment.declined]
    rules:
    - {error_types: [payment.busy], linear: {initial: 1s, increment: 2s, max: 9s}, max_attempts: 2}
    - {error_types: [payment.slow], random: {min: 1s, max: 2s}, match_on: ROOT_CAUSE}
  compensate: {task: {type: payment.refund}, only_completed: true}
finally:
- {id: tell, task: {type: mail.send}}
",
        );
        let (workflow, issues) = from_proto(&given);
        assert_eq!(issues, []);
        assert_eq!(to_proto(&workflow), given);
    }

    #[test]
    fn values_that_core_cannot_represent_are_issues_with_their_path() {
        let mut given = parsed("name: a\nsteps:\n- {id: s, task: {type: t}}\n");
        given.timeout = Some(proto::Duration { seconds: -1, nanos: 0 });
        given.steps.push(v1::Step::default());
        let constant = v1::retry_policy::Schedule::Constant(v1::ConstantSchedule::default());
        let retry = v1::RetryPolicy { schedule: Some(constant), ..v1::RetryPolicy::default() };
        given.steps[0].retry = Some(retry);
        let (_, issues) = from_proto(&given);
        let mut paths: Vec<_> = issues.iter().map(|issue| issue.field_path.as_str()).collect();
        paths.sort_unstable();
        assert_eq!(paths, ["steps[0].retry.constant.interval", "steps[1].task", "timeout"]);
    }

    #[test]
    fn unknown_enum_value_is_reported_with_its_own_issue_code() {
        let mut given =
            parsed("name: a\nsteps:\n- {id: s, task: {type: t}, compensate: {task: {type: u}}}\n");
        let rules = vec![v1::RetryRule { match_on: 96, ..v1::RetryRule::default() }];
        given.steps[0].retry = Some(v1::RetryPolicy { match_on: 97, rules, ..Default::default() });
        given.steps[0].on_error = 99;
        let compensate = given.steps[0].compensate.as_mut().expect("the step has one");
        let Some(v1::compensate::Kind::Task(task)) = &mut compensate.kind else {
            panic!("a compensation is a task");
        };
        task.delivery = 98;
        let (_, issues) = from_proto(&given);
        let found = issues.iter().map(|issue| (issue.field_path.as_str(), issue.code));
        let mut found: Vec<_> = found.collect();
        found.sort_unstable_by_key(|(path, _)| *path);
        let unknown = |path| (path, IssueCode::ValueUnknown);
        let expected = [
            unknown("steps[0].compensate.task.delivery"),
            unknown("steps[0].on_error"),
            unknown("steps[0].retry.match_on"),
            unknown("steps[0].retry.rules[0].match_on"),
        ];
        assert_eq!(found, expected);
        let first = &issues.iter().find(|issue| issue.field_path.ends_with("on_error"));
        let message = &first.expect("it is among them").message;
        assert_eq!(message, "99 is not a value that this server knows");
    }
}
