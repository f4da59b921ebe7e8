//! Converts definitions.

use recoup_core::definition::{
    Block, Branch, Case, Catch, Compensate, Defaults, Delivery, Fail, FailureMode, ForEach,
    OnError, Parallel, Raise, Step, StepKind, Switch, Task, Timeouts, Workflow,
};
use recoup_core::limits::clean;
use recoup_core::plan::{Issue, IssueCode};
use recoup_core::retry::MatchOn;
use recoup_proto::v1;

use super::reader::Reader;
use super::{retry, time};

super::to_proto!(on_error: OnError => v1::OnError: Fail Ignore);
super::from_proto!(on_error_from: v1::OnError => OnError: Fail Ignore);
super::to_proto!(mode: FailureMode => v1::FailureMode: FailFast WaitAll);
super::from_proto!(mode_from: v1::FailureMode => FailureMode: FailFast WaitAll);
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
    fn rewrite(template: &mut Option<v1::Template>) {
        if let Some(template) = template
            && let Ok(value) = template.value()
        {
            *template = v1::Template::new(&value);
        }
    }
    each_template(&mut definition.steps, &mut rewrite);
    each_template(&mut definition.on_failure, &mut rewrite);
    each_template(&mut definition.finally, &mut rewrite);
    rewrite(&mut definition.output);
    definition
}

/// Visits every template of the steps, and of the steps inside them.
fn each_template(steps: &mut [v1::Step], visit: &mut impl FnMut(&mut Option<v1::Template>)) {
    use v1::step::Kind;
    for step in steps {
        match &mut step.kind {
            None => {}
            Some(Kind::Task(task)) => visit(&mut task.input),
            Some(Kind::Set(value)) => {
                let mut own = Some(std::mem::take(value));
                visit(&mut own);
                *value = own.unwrap_or_default();
            }
            Some(Kind::Fail(fail)) => visit(&mut fail.details),
            Some(Kind::Return(own)) => visit(&mut own.output),
            Some(Kind::Switch(switch)) => {
                for case in &mut switch.cases {
                    each_template(&mut case.steps, visit);
                    visit(&mut case.output);
                }
                if let Some(default) = &mut switch.default {
                    each_template(&mut default.steps, visit);
                    visit(&mut default.output);
                }
            }
            Some(Kind::Try(body)) => {
                each_template(&mut body.steps, visit);
                visit(&mut body.output);
            }
            Some(Kind::ForEach(each)) => {
                each_template(&mut each.steps, visit);
                visit(&mut each.output);
            }
            Some(Kind::Parallel(parallel)) => {
                for branch in parallel.branches.values_mut() {
                    each_template(&mut branch.steps, visit);
                    visit(&mut branch.output);
                }
            }
        }
        for catch in &mut step.catch {
            each_template(&mut catch.steps, visit);
            visit(&mut catch.output);
        }
        if let Some(v1::Compensate { kind: Some(v1::compensate::Kind::Task(task)), .. }) =
            &mut step.compensate
        {
            visit(&mut task.input);
        }
    }
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
            steps: self.block(&definition.steps, definition.output.as_ref(), ""),
            on_failure: self.steps(&definition.on_failure, "on_failure"),
            finally: self.steps(&definition.finally, "finally"),
            timeout: self.duration(definition.timeout, "", "timeout"),
            cleanup_timeout: self.duration(definition.cleanup_timeout, "", "cleanup_timeout"),
            cancel_grace: self.duration(definition.cancel_grace, "", "cancel_grace"),
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

    /// Reads the steps and the output of a list of steps. `path` is that of the list, with a dot at its end
    /// unless it is empty.
    fn block(&mut self, steps: &[v1::Step], output: Option<&v1::Template>, path: &str) -> Block {
        Block { steps: self.steps(steps, &format!("{path}steps")), output: template(output) }
    }

    fn steps(&mut self, steps: &[v1::Step], path: &str) -> Vec<Step> {
        let steps = steps.iter().enumerate();
        steps.map(|(index, step)| self.step(step, &format!("{path}[{index}]"))).collect()
    }

    fn kind(&mut self, kind: Option<&v1::step::Kind>, path: &str) -> StepKind {
        use v1::step::Kind;
        match kind {
            Some(Kind::Task(task)) => StepKind::Task(self.task(task, &format!("{path}.task"))),
            Some(Kind::Set(value)) => StepKind::Set(value.json.clone()),
            Some(Kind::Fail(fail)) => StepKind::Fail(self.fail(fail, &format!("{path}.fail"))),
            Some(Kind::Return(own)) => StepKind::Return { output: template(own.output.as_ref()) },
            Some(Kind::Switch(switch)) => {
                let path = format!("{path}.switch");
                let cases = switch.cases.iter().enumerate().map(|(index, case)| Case {
                    when: clean(&case.when).into_owned(),
                    block: self.block(
                        &case.steps,
                        case.output.as_ref(),
                        &format!("{path}.cases[{index}]."),
                    ),
                });
                let cases = cases.collect();
                let default = switch.default.as_ref().map(|default| {
                    self.block(&default.steps, default.output.as_ref(), &format!("{path}.default."))
                });
                StepKind::Switch(Switch { cases, default })
            }
            Some(Kind::Try(body)) => {
                let path = format!("{path}.try.");
                StepKind::Try(self.block(&body.steps, body.output.as_ref(), &path))
            }
            Some(Kind::Parallel(own)) => {
                StepKind::Parallel(self.parallel(own, &format!("{path}.parallel")))
            }
            Some(Kind::ForEach(own)) => {
                StepKind::ForEach(self.for_each(own, &format!("{path}.for_each")))
            }
            None => {
                let message = "a step needs a kind: `task`, `set`, `fail`, `return`, `switch`, `try`, \
                               `parallel` or `for_each`, such as `task: {type: payment.charge}`";
                self.issue(format!("{path}.task"), IssueCode::Required, message);
                StepKind::Task(Task::default())
            }
        }
    }

    fn parallel(&mut self, parallel: &v1::ParallelStep, path: &str) -> Parallel {
        let v1::ParallelStep { branches, mode, concurrency } = parallel;
        let branches = branches.iter().map(|(id, branch)| {
            let v1::Branch { steps, output, after } = branch;
            let path = format!("{path}.branches.{id}.");
            let block = self.block(steps, output.as_ref(), &path);
            let after = after.iter().map(|id| id.as_str().into()).collect();
            (id.as_str().into(), Branch { block, after })
        });
        Parallel {
            branches: branches.collect(),
            mode: self.known(*mode, path, "mode", mode_from).unwrap_or_default(),
            concurrency: Some(*concurrency).filter(|most| *most > 0),
        }
    }

    fn for_each(&mut self, each: &v1::ForEachStep, path: &str) -> ForEach {
        let v1::ForEachStep { items, item_key, concurrency, mode, steps, output } = each;
        ForEach {
            items: clean(items).into_owned(),
            item_key: some(item_key),
            concurrency: Some(*concurrency).filter(|most| *most > 0),
            mode: self.known(*mode, path, "mode", mode_from).unwrap_or_default(),
            block: self.block(steps, output.as_ref(), &format!("{path}.")),
        }
    }

    fn fail(&mut self, fail: &v1::FailStep, path: &str) -> Fail {
        let v1::FailStep { r#type, message, details, non_retryable, rethrow } = fail;
        if !rethrow {
            return Fail::Raise(Raise {
                error_type: clean(r#type).into_owned(),
                message: clean(message).into_owned(),
                details: template(details.as_ref()),
                non_retryable: *non_retryable,
            });
        }
        if !r#type.is_empty() || !message.is_empty() || details.is_some() || *non_retryable {
            let message = "raises the error again as it is: remove the other fields, or `rethrow`";
            self.issue(format!("{path}.rethrow"), IssueCode::Misplaced, message);
        }
        Fail::Rethrow
    }

    fn catch(&mut self, catch: &v1::Catch, path: &str) -> Catch {
        let v1::Catch { error_types, match_on, when, steps, output } = catch;
        Catch {
            error_types: error_types.iter().map(|own| clean(own).into_owned()).collect(),
            match_on: self
                .known(*match_on, path, "match_on", retry::match_on_from)
                .unwrap_or_default(),
            when: some(when),
            block: self.block(steps, output.as_ref(), &format!("{path}.")),
        }
    }

    fn step(&mut self, step: &v1::Step, path: &str) -> Step {
        let kind = self.kind(step.kind.as_ref(), path);
        let catch = step.catch.iter().enumerate();
        let catch = catch.map(|(index, own)| self.catch(own, &format!("{path}.catch[{index}]")));
        let catch = catch.collect();
        let retry = step.retry.as_ref();
        let compensate = step.compensate.as_ref();
        Step {
            id: step.id.as_str().into(),
            description: clean(&step.description).into_owned(),
            kind,
            when: some(&step.when),
            timeout: self.duration(step.timeout, path, "timeout"),
            retry: retry.map(|retry| self.policy(retry, &format!("{path}.retry"))),
            catch,
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
        steps: workflow.steps.steps.iter().map(step).collect(),
        on_failure: workflow.on_failure.iter().map(step).collect(),
        finally: workflow.finally.iter().map(step).collect(),
        timeout: workflow.timeout.map(time::duration),
        cleanup_timeout: workflow.cleanup_timeout.map(time::duration),
        cancel_grace: workflow.cancel_grace.map(time::duration),
        output: to_template(&workflow.steps.output),
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

fn to_template(json: &Option<String>) -> Option<v1::Template> {
    json.clone().map(|json| v1::Template { json })
}

fn kind(kind: &StepKind) -> v1::step::Kind {
    use v1::step::Kind;
    match kind {
        StepKind::Task(own) => Kind::Task(task(own)),
        StepKind::Set(value) => Kind::Set(v1::Template { json: value.clone() }),
        StepKind::Fail(Fail::Raise(raise)) => Kind::Fail(v1::FailStep {
            r#type: raise.error_type.clone(),
            message: raise.message.clone(),
            details: to_template(&raise.details),
            non_retryable: raise.non_retryable,
            rethrow: false,
        }),
        StepKind::Fail(Fail::Rethrow) => {
            Kind::Fail(v1::FailStep { rethrow: true, ..v1::FailStep::default() })
        }
        StepKind::Return { output } => Kind::Return(v1::ReturnStep { output: to_template(output) }),
        StepKind::Switch(switch) => Kind::Switch(v1::SwitchStep {
            cases: switch
                .cases
                .iter()
                .map(|case| v1::SwitchCase {
                    when: case.when.clone(),
                    steps: case.block.steps.iter().map(step).collect(),
                    output: to_template(&case.block.output),
                })
                .collect(),
            default: switch.default.as_ref().map(|default| v1::Block {
                steps: default.steps.iter().map(step).collect(),
                output: to_template(&default.output),
            }),
        }),
        StepKind::Try(body) => Kind::Try(v1::TryStep {
            steps: body.steps.iter().map(step).collect(),
            output: to_template(&body.output),
        }),
        StepKind::Parallel(own) => Kind::Parallel(parallel(own)),
        StepKind::ForEach(own) => Kind::ForEach(for_each(own)),
    }
}

fn parallel(parallel: &Parallel) -> v1::ParallelStep {
    let branches = parallel.branches.iter().map(|(id, Branch { block, after })| {
        let branch = v1::Branch {
            steps: block.steps.iter().map(step).collect(),
            output: to_template(&block.output),
            after: after.iter().map(|id| id.as_str().to_owned()).collect(),
        };
        (id.as_str().to_owned(), branch)
    });
    v1::ParallelStep {
        branches: branches.collect(),
        mode: mode_or_default(parallel.mode).into(),
        concurrency: parallel.concurrency.unwrap_or_default(),
    }
}

fn for_each(each: &ForEach) -> v1::ForEachStep {
    v1::ForEachStep {
        items: each.items.clone(),
        item_key: each.item_key.clone().unwrap_or_default(),
        concurrency: each.concurrency.unwrap_or_default(),
        mode: mode_or_default(each.mode).into(),
        steps: each.block.steps.iter().map(step).collect(),
        output: to_template(&each.block.output),
    }
}

fn mode_or_default(own: FailureMode) -> v1::FailureMode {
    match own {
        FailureMode::FailFast => v1::FailureMode::Unspecified,
        other => mode(other),
    }
}

fn catch(catch: &Catch) -> v1::Catch {
    v1::Catch {
        error_types: catch.error_types.clone(),
        match_on: match catch.match_on {
            MatchOn::Outermost => v1::MatchOn::Unspecified.into(),
            other => retry::match_on(other).into(),
        },
        when: catch.when.clone().unwrap_or_default(),
        steps: catch.block.steps.iter().map(step).collect(),
        output: to_template(&catch.block.output),
    }
}

fn step(step: &Step) -> v1::Step {
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
        kind: Some(kind(&step.kind)),
        catch: step.catch.iter().map(catch).collect(),
        timeout: step.timeout.map(time::duration),
    }
}

fn task(task: &Task) -> v1::TaskStep {
    v1::TaskStep {
        r#type: task.task_type.clone(),
        queue: task.queue.clone().unwrap_or_default(),
        input: to_template(&task.input),
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
- id: value
  set: {n: '${input.total}'}
- id: guarded
  try:
    output: '${steps.choose.output}'
    steps:
    - id: choose
      switch:
        cases:
        - when: input.total > 5
          output: 1
          steps: [{id: refuse, fail: {type: order.rejected, message: 'over ${input.total}', details: {a: 1}, non_retryable: true}}]
        default: {steps: [{id: done, return: {output: 2}}], output: 3}
  catch:
  - error_types: [order]
    match_on: ANY_CAUSE
    when: error.attempts > 1
    output: 4
    steps: [{id: again, fail: {rethrow: true}}]
- id: fan
  timeout: 1m30s
  parallel:
    mode: WAIT_ALL
    concurrency: 2
    branches:
      right: {steps: [{id: b, set: 1}], output: '${steps.b.output}'}
      left: {steps: [{id: a, set: 2}]}
      input: {after: [right, left], steps: [{id: c, set: '${branches.left.output}'}]}
on_failure:
- {id: report, set: '${error.type}'}
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
        let branch = v1::Branch { steps: given.steps.clone(), ..v1::Branch::default() };
        let parallel = v1::ParallelStep {
            branches: [("left".to_owned(), branch)].into(),
            mode: 95,
            concurrency: 0,
        };
        let fan = Some(v1::step::Kind::Parallel(parallel));
        given.steps = vec![v1::Step { kind: fan, ..v1::Step::default() }];
        let (_, issues) = from_proto(&given);
        let found = issues.iter().map(|issue| (issue.field_path.as_str(), issue.code));
        let mut found: Vec<_> = found.collect();
        found.sort_unstable_by_key(|(path, _)| *path);
        let unknown = |path| (path, IssueCode::ValueUnknown);
        let expected = [
            unknown("steps[0].parallel.branches.left.steps[0].compensate.task.delivery"),
            unknown("steps[0].parallel.branches.left.steps[0].on_error"),
            unknown("steps[0].parallel.branches.left.steps[0].retry.match_on"),
            unknown("steps[0].parallel.branches.left.steps[0].retry.rules[0].match_on"),
            unknown("steps[0].parallel.mode"),
        ];
        assert_eq!(found, expected);
        let first = &issues.iter().find(|issue| issue.field_path.ends_with("on_error"));
        let message = &first.expect("it is among them").message;
        assert_eq!(message, "99 is not a value that this server knows");
    }
}
