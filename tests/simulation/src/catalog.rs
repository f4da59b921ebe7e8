//! The workflows that run. Between them they use everything that a definition can contain so far.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use recoup_core::definition::{
    Block, Branch, Case, Catch, Compensate, Defaults, Delivery, Fail, FailureMode, ForEach,
    OnError, Parallel, Raise, Step, StepKind, Switch, Task, Timeouts, Workflow,
};
use recoup_core::id::{Namespace, StepId};
use recoup_core::plan::Plan;
use recoup_core::retry::{Limits, RetryPolicy, Schedule};
use recoup_store::memory::MemoryStore;
use recoup_store::{NewVersion, QueueName, Workflows};

use crate::wait::ready;

pub const NAMESPACE: &str = "default";
pub const QUEUES: [&str; 2] = ["a", "b"];

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub fn queue(name: &str) -> QueueName {
    QueueName { namespace: Namespace::from(NAMESPACE), queue: name.into() }
}

/// All workflows, compiled once for all seeds.
pub struct Catalog {
    definitions: Vec<Workflow>,
    pub plans: Vec<Arc<Plan>>,
    /// The cache in which nodes look up versions when they load executions.
    pub cache: recoup_engine::load::Plans,
}

impl Catalog {
    pub fn new() -> Self {
        let definitions = definitions();
        let plans = definitions.iter().map(|definition| {
            Arc::new(Plan::compile(definition, 1).expect("the catalog's definitions are sound"))
        });
        let plans = plans.collect();
        Self { definitions, plans, cache: recoup_engine::load::Plans::default() }
    }

    pub fn register(&self, store: &MemoryStore) {
        for (index, definition) in self.definitions.iter().enumerate() {
            let version = NewVersion::new(
                Namespace::from(NAMESPACE),
                [u8::try_from(index).unwrap_or(0); 32],
                definition,
            );
            ready(store.register(&version, None)).expect("the model registers what is new");
        }
    }

    /// Every task type, including those of compensations, sorted by name.
    pub fn task_types(&self) -> Vec<String> {
        let mut types = BTreeSet::new();
        for own in &self.definitions {
            add_task_types(&own.steps.steps, &mut types);
            add_task_types(&own.on_failure, &mut types);
            add_task_types(&own.finally, &mut types);
        }
        types.into_iter().collect()
    }

    pub fn plan(&self, name: &str) -> Option<&Arc<Plan>> {
        self.plans.iter().find(|plan| plan.name.as_str() == name)
    }
}

impl Default for Catalog {
    fn default() -> Self {
        Self::new()
    }
}

fn add_task_types(steps: &[Step], types: &mut BTreeSet<String>) {
    for step in steps {
        let undo = step.compensate.as_ref().map(|undo| &undo.task);
        types.extend(step.kind.task().into_iter().chain(undo).map(|task| task.task_type.clone()));
        for block in step.blocks() {
            add_task_types(&block.steps, types);
        }
    }
}

fn retry(attempts: u32, interval: Duration) -> Option<RetryPolicy> {
    Some(RetryPolicy {
        schedule: Some(Schedule::Constant { interval }),
        limits: Limits { max_attempts: Some(attempts), max_duration: None },
        non_retryable_error_types: vec!["user.declined".into()],
        ..RetryPolicy::default()
    })
}

fn task(task_type: &str) -> Task {
    let timeouts = Timeouts { start_to_close: Some(ms(2500)), ..Timeouts::default() };
    Task { task_type: task_type.into(), queue: Some("a".into()), timeouts, ..Task::default() }
}

fn step(id: &str, attempts: u32) -> Step {
    Step {
        id: StepId::from(id),
        description: String::new(),
        kind: StepKind::Task(task(id)),
        when: None,
        retry: retry(attempts, ms(60)),
        timeout: None,
        catch: Vec::new(),
        on_error: OnError::Fail,
        allow_warning: false,
        compensate: None,
    }
}

fn undone(id: &str, attempts: u32) -> Step {
    let undo = Task { queue: Some("b".into()), ..task(&format!("undo_{id}")) };
    let compensate = Compensate { task: undo, retry: retry(2, ms(40)), only_completed: false };
    Step { compensate: Some(compensate), ..step(id, attempts) }
}

fn with_task(mut step: Step, change: impl FnOnce(&mut Task)) -> Step {
    change(step.kind.task_mut().expect("it is a task"));
    step
}

fn workflow(name: &str, steps: Vec<Step>) -> Workflow {
    Workflow {
        name: name.into(),
        description: String::new(),
        defaults: Defaults::default(),
        steps: steps.into(),
        on_failure: Vec::new(),
        finally: Vec::new(),
        timeout: None,
        cleanup_timeout: None,
        cancel_grace: Some(ms(700)),
    }
}

/// A step that is not a task.
fn block(id: &str, kind: StepKind) -> Step {
    Step { kind, retry: None, ..step(id, 1) }
}

fn group(id: &str, steps: Vec<Step>) -> Step {
    block(id, StepKind::Try(steps.into()))
}

/// A handler of errors of this type, or of all errors if it is empty.
fn handler(error_type: &str, steps: Vec<Step>) -> Catch {
    let types = Some(error_type).filter(|own| !own.is_empty()).into_iter();
    Catch { error_types: types.map(Into::into).collect(), block: steps.into(), ..Catch::default() }
}

/// Has steps of every kind, handlers that take the error, fail or pass it on, and blocks in `finally`.
fn guarded() -> Workflow {
    let rethrow = |id| block(id, StepKind::Fail(Fail::Rethrow));
    let raise = Raise {
        error_type: "user.rejected".into(),
        message: "n is ${steps.ask.output.n}".into(),
        ..Raise::default()
    };
    let case = |divisor: u32, steps: Vec<Step>| Case {
        when: format!("steps.ask.output.n % {divisor} == 0"),
        block: steps.into(),
    };
    let done = StepKind::Return { output: Some("\"early\"".into()) };
    let early = Step { when: Some("steps.ask.output.n % 4 == 0".into()), ..block("early", done) };
    let cases = vec![
        case(5, vec![block("reject", StepKind::Fail(Fail::Raise(raise)))]),
        case(2, vec![early, undone("chosen", 2)]),
    ];
    let default = Some(vec![undone("other", 1)].into());
    let choose = block("choose", StepKind::Switch(Switch { cases, default }));
    let risky = Step {
        catch: vec![
            handler("user.declined", vec![undone("mend", 2)]),
            handler("recoup", vec![step("report", 1), rethrow("again")]),
        ],
        ..undone("fails_often", 2)
    };
    let book = Step {
        catch: vec![
            handler("user.rejected", vec![step("console", 2)]),
            Catch {
                when: Some("error.attempts > 0 && error.step != 'book.last'".into()),
                ..handler("", vec![undone("instead", 1)])
            },
        ],
        ..group("book", vec![undone("hold", 2), choose, risky, undone("last", 1)])
    };
    let soft = Step { on_error: OnError::Ignore, ..group("soft", vec![undone("gently", 1)]) };
    let tell = Step { catch: vec![handler("", vec![])], ..group("tell", vec![step("mail", 1)]) };
    let total = block("total", StepKind::Set("{\"n\": \"${steps.ask.output.n + 1}\"}".into()));
    let when_odd = Some("steps.total.output.n % 2 == 1".into());
    Workflow {
        on_failure: vec![
            group("page", vec![step("alert", 2)]),
            block("noted", StepKind::Set("\"${execution.compensation_state}\"".into())),
        ],
        finally: vec![tell, group("close", vec![step("sweep", 1)])],
        ..workflow(
            "guarded",
            vec![step("ask", 2), total, book, soft, Step { when: when_odd, ..undone("end", 1) }],
        )
    }
}

fn branch(steps: Vec<Step>, after: &[&str]) -> Branch {
    Branch { block: steps.into(), after: after.iter().map(|id| (*id).into()).collect() }
}

fn parallel(id: &str, mode: FailureMode, branches: &[(&str, Branch)]) -> Step {
    let branches = branches.iter().map(|(id, branch)| ((*id).into(), branch.clone())).collect();
    block(id, StepKind::Parallel(Parallel { branches, mode, concurrency: None }))
}

fn each(id: &str, items: &str, mode: FailureMode, steps: Vec<Step>) -> Step {
    let each = ForEach {
        items: items.into(),
        concurrency: Some(2),
        mode,
        block: steps.into(),
        item_key: None,
    };
    block(id, StepKind::ForEach(each))
}

/// Has branches in every place, some inside each other: the failure of one stops the others, or waits for
/// them; some branches come after others, and some steps time out. Steps are repeated for items, in the same ways.
fn fans() -> Workflow {
    let gather = parallel(
        "gather",
        FailureMode::WaitAll,
        &[
            ("x", branch(vec![undone("gather_x", 1)], &[])),
            ("y", branch(vec![undone("fails_often", 2)], &["x"])),
            ("z", branch(vec![undone("gather_z", 2), step("gather_end", 1)], &[])),
        ],
    );
    let gather = Step {
        catch: vec![Catch {
            when: Some("size(error.suppressed) == 0".into()),
            ..handler("", vec![undone("gather_less", 1)])
        }],
        ..gather
    };
    let slow = Step {
        timeout: Some(ms(1200)),
        catch: vec![handler("recoup.timeout.block", vec![step("slow_end", 1)])],
        ..group("slow", vec![undone("slow_a", 2), undone("slow_b", 2)])
    };
    let mut reads = block("reads", StepKind::Set("\"${branches.left.output}\"".into()));
    reads.when = Some("branches.left.output != null".into());
    let all = Step {
        catch: vec![Catch {
            when: Some("error.cause.type != 'user.declined'".into()),
            ..handler("recoup.too_many_failures", vec![undone("items_less", 1)])
        }],
        ..each("all", "[1, 2, 3]", FailureMode::WaitAll, vec![undone("item_a", 2)])
    };
    let inner = each("cells", "[item, 2]", FailureMode::FailFast, vec![undone("cell_a", 2)]);
    let rows = vec![undone("row_a", 2), inner];
    let rows = Step {
        timeout: Some(ms(6000)),
        catch: vec![handler("recoup.timeout.block", vec![])],
        ..each("rows", "{'b': 1, 'a': 2, 'c': 3}", FailureMode::FailFast, rows)
    };
    let mut fan = parallel(
        "fan",
        FailureMode::FailFast,
        &[
            ("left", branch(vec![undone("left_a", 2), undone("left_b", 1)], &[])),
            ("right", branch(vec![slow, undone("right_a", 2)], &[])),
            ("inner", branch(vec![gather, all], &[])),
            ("last", branch(vec![reads, undone("last_a", 2)], &["left", "right"])),
        ],
    );
    fan.timeout = Some(ms(9000));
    if let StepKind::Parallel(own) = &mut fan.kind {
        own.concurrency = Some(2);
    }
    let tell = |id: &str, mode, steps: [&str; 2]| {
        let one = |id: &str| branch(vec![step(id, 1)], &[]);
        parallel(id, mode, &[("x", one(steps[0])), ("y", one(steps[1]))])
    };
    Workflow {
        on_failure: vec![tell("tell", FailureMode::FailFast, ["mail", "page"])],
        finally: vec![tell("tidy", FailureMode::WaitAll, ["wipe", "log"])],
        cancel_grace: Some(ms(500)),
        ..workflow("fans", vec![undone("begin", 2), fan, rows, undone("end", 1)])
    }
}

fn definitions() -> Vec<Workflow> {
    let once = |step| with_task(step, |task| task.delivery = Delivery::AtMostOnce);
    let ignored = Step { on_error: OnError::Ignore, ..step("soft", 2) };
    let quiet = Step { on_error: OnError::Ignore, allow_warning: true, ..step("quiet", 1) };
    let mut parks = undone("parks", 1);
    if let Some(compensate) = &mut parks.compensate {
        compensate.task.task_type = "undo_mostly_fails".into();
    }
    let mut known = undone("known", 2);
    if let Some(compensate) = &mut known.compensate {
        compensate.only_completed = true;
    }
    let exponential = RetryPolicy {
        schedule: Some(Schedule::Exponential {
            initial_interval: ms(50),
            backoff_coefficient: 3.0,
            max_interval: ms(400),
        }),
        limits: Limits { max_attempts: Some(3), max_duration: Some(ms(5000)) },
        warning_on_retry: true,
        ..RetryPolicy::default()
    };
    let b = |task: &mut Task| {
        task.queue = Some("b".into());
        task.priority = 3;
    };
    let seen = |name: &str| format!("{{\"{name}\": \"${{steps.ask.output.n}}\"}}");
    let asks = vec![
        step("ask", 2),
        Step { when: Some("steps.ask.output.n % 2 == 0".into()), ..undone("even", 2) },
        with_task(step("use", 2), |task| task.input = Some(seen("seen"))),
    ];
    vec![
        guarded(),
        fans(),
        workflow("one", vec![step("only", 3)]),
        Workflow {
            finally: vec![step("tidy", 2)],
            ..workflow("saga", vec![undone("reserve", 2), undone("charge", 2), undone("ship", 1)])
        },
        workflow("soft", vec![ignored, quiet, step("last", 2)]),
        Workflow {
            timeout: Some(ms(3000)),
            cancel_grace: Some(ms(400)),
            finally: vec![step("sweep", 1)],
            ..workflow("timed", vec![undone("first", 2), undone("second", 2), step("third", 2)])
        },
        workflow("once", vec![once(undone("pay", 2)), once(step("post", 1)), step("tell", 2)]),
        workflow(
            "bounded",
            vec![
                undone("begun", 2),
                with_task(step("soon", 2), |task| {
                    task.timeouts.schedule_to_start = Some(ms(1500));
                    b(task);
                }),
                with_task(step("closed", 3), |task| {
                    task.timeouts.schedule_to_close = Some(ms(2600));
                    task.timeouts.start_to_close = Some(ms(900));
                }),
            ],
        ),
        workflow(
            "beats",
            vec![
                with_task(undone("beat", 3), |task| {
                    task.timeouts.heartbeat = Some(ms(900));
                    task.timeouts.start_to_close = Some(ms(6000));
                }),
                step("after", 2),
            ],
        ),
        Workflow {
            steps: Block { steps: asks, output: Some(seen("n")) },
            ..workflow("asks", vec![])
        },
        Workflow {
            finally: vec![step("close", 2), with_task(step("report", 1), b)],
            cleanup_timeout: Some(ms(8000)),
            ..workflow(
                "long",
                vec![
                    undone("s1", 2),
                    with_task(undone("s2", 3), b),
                    known,
                    with_task(Step { retry: Some(exponential), ..undone("s4", 3) }, b),
                    step("s5", 1),
                ],
            )
        },
        workflow("parks", vec![parks, undone("next", 1), step("fails_often", 1)]),
        workflow(
            "sleeps",
            vec![undone("start", 2), Step { retry: retry(3, ms(7000)), ..step("fails_often", 3) }],
        ),
    ]
}
