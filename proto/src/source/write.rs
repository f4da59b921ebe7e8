//! Writes definitions as the reference of workflow files spells them: snake_case, durations such as
//! `1m30s`, enum values without their prefix. What is written can be read and registered again.

use serde_json::Value;

use crate::Duration;
use crate::v1::{
    Block, Branch, Catch, Compensate, ConstantSchedule, Delivery, ExponentialSchedule, FailStep,
    FailureMode, ForEachStep, LinearSchedule, MatchOn, OnError, ParallelStep, RandomSchedule,
    RetryPolicy, RetryRule, ReturnStep, Step, SwitchCase, SwitchStep, TaskStep, Template, TryStep,
    WorkflowDefaults, WorkflowDefinition, compensate, retry_policy, retry_rule, step,
};

/// The definition as YAML.
pub fn write(definition: &WorkflowDefinition) -> String {
    let mut text = String::new();
    for (key, value) in workflow(definition) {
        entry(&mut text, 0, &key, &value);
    }
    text
}

enum Yaml {
    /// Written as it is.
    Scalar(String),
    List(Vec<Yaml>),
    Map(Vec<(String, Yaml)>),
}

fn workflow(definition: &WorkflowDefinition) -> Vec<(String, Yaml)> {
    let WorkflowDefinition {
        name,
        description,
        defaults,
        steps,
        finally,
        on_failure,
        timeout,
        cleanup_timeout,
        cancel_grace,
        output,
    } = definition;
    Fields::default()
        .text("name", name)
        .text("description", description)
        .duration("timeout", *timeout)
        .duration("cleanup_timeout", *cleanup_timeout)
        .duration("cancel_grace", *cancel_grace)
        .map("defaults", defaults.as_ref().map(workflow_defaults))
        .steps("steps", steps)
        .steps("on_failure", on_failure)
        .steps("finally", finally)
        .template("output", output.as_ref())
        .0
}

fn workflow_defaults(defaults: &WorkflowDefaults) -> Fields {
    let WorkflowDefaults {
        queue,
        retry,
        schedule_to_start,
        start_to_close,
        schedule_to_close,
        heartbeat,
    } = defaults;
    Fields::default()
        .text("queue", queue)
        .duration("schedule_to_start", *schedule_to_start)
        .duration("start_to_close", *start_to_close)
        .duration("schedule_to_close", *schedule_to_close)
        .duration("heartbeat", *heartbeat)
        .map("retry", retry.as_ref().map(policy))
}

fn one_step(of: &Step) -> Yaml {
    use step::Kind;
    let Step {
        id,
        when,
        retry,
        on_error,
        allow_warning,
        compensate,
        description,
        catch,
        timeout,
        kind,
    } = of;
    let fields =
        Fields::default().text("id", id).text("description", description).text("when", when);
    let fields = match kind {
        None => fields,
        Some(Kind::Task(own)) => fields.map("task", Some(task(own))),
        Some(Kind::Set(own)) => fields.template("set", Some(own)),
        Some(Kind::Fail(own)) => fields.map("fail", Some(fail(own))),
        Some(Kind::Return(ReturnStep { output })) => {
            fields.map("return", Some(Fields::default().template("output", output.as_ref())))
        }
        Some(Kind::Switch(own)) => fields.map("switch", Some(switch(own))),
        Some(Kind::Try(TryStep { steps, output })) => {
            fields.map("try", Some(Fields::default().block(steps, output.as_ref())))
        }
        Some(Kind::Parallel(own)) => fields.map("parallel", Some(parallel(own))),
        Some(Kind::ForEach(own)) => fields.map("for_each", Some(for_each(own))),
    };
    let on_error = OnError::try_from(*on_error).unwrap_or_default();
    let fields = fields
        .duration("timeout", *timeout)
        .map("retry", retry.as_ref().map(policy))
        .list("catch", catch.iter().map(handler).collect())
        .name("on_error", on_error.as_str_name(), OnError::default().as_str_name())
        .flag("allow_warning", *allow_warning)
        .map("compensate", compensate.as_ref().map(undo));
    Yaml::Map(fields.0)
}

fn task(of: &TaskStep) -> Fields {
    let TaskStep {
        r#type,
        queue,
        input,
        schedule_to_start,
        start_to_close,
        schedule_to_close,
        heartbeat,
        priority,
        delivery,
    } = of;
    let delivery = Delivery::try_from(*delivery).unwrap_or_default();
    Fields::default()
        .text("type", r#type)
        .text("queue", queue)
        .template("input", input.as_ref())
        .duration("schedule_to_start", *schedule_to_start)
        .duration("start_to_close", *start_to_close)
        .duration("schedule_to_close", *schedule_to_close)
        .duration("heartbeat", *heartbeat)
        .number("priority", Some(*priority).filter(|priority| *priority != 0))
        .name("delivery", delivery.as_str_name(), Delivery::default().as_str_name())
}

fn fail(of: &FailStep) -> Fields {
    let FailStep { r#type, message, details, non_retryable, rethrow } = of;
    Fields::default()
        .text("type", r#type)
        .text("message", message)
        .template("details", details.as_ref())
        .flag("non_retryable", *non_retryable)
        .flag("rethrow", *rethrow)
}

fn switch(of: &SwitchStep) -> Fields {
    let SwitchStep { cases, default } = of;
    let block = |Block { steps, output }: &Block| Fields::default().block(steps, output.as_ref());
    Fields::default()
        .list("cases", cases.iter().map(case).collect())
        .map("default", default.as_ref().map(block))
}

fn case(of: &SwitchCase) -> Yaml {
    let SwitchCase { when, steps, output } = of;
    Yaml::Map(Fields::default().text("when", when).block(steps, output.as_ref()).0)
}

fn parallel(of: &ParallelStep) -> Fields {
    let ParallelStep { branches, mode, concurrency } = of;
    let mode = FailureMode::try_from(*mode).unwrap_or_default();
    let branches = branches.iter().map(|(id, own)| (scalar(id), Yaml::Map(branch(own).0)));
    Fields(vec![("branches".to_owned(), Yaml::Map(branches.collect()))])
        .name("mode", mode.as_str_name(), FailureMode::default().as_str_name())
        .number("concurrency", Some(*concurrency).filter(|most| *most != 0))
}

fn for_each(of: &ForEachStep) -> Fields {
    let ForEachStep { items, item_key, concurrency, mode, steps, output } = of;
    let mode = FailureMode::try_from(*mode).unwrap_or_default();
    Fields::default()
        .text("items", items)
        .text("item_key", item_key)
        .name("mode", mode.as_str_name(), FailureMode::default().as_str_name())
        .number("concurrency", Some(*concurrency).filter(|most| *most != 0))
        .block(steps, output.as_ref())
}

fn branch(of: &Branch) -> Fields {
    let Branch { steps, output, after } = of;
    Fields::default().texts("after", after).block(steps, output.as_ref())
}

fn handler(of: &Catch) -> Yaml {
    let Catch { error_types, match_on, when, steps, output } = of;
    let match_on = MatchOn::try_from(*match_on).unwrap_or_default();
    let fields = Fields::default()
        .texts("error_types", error_types)
        .name("match_on", match_on.as_str_name(), MatchOn::default().as_str_name())
        .text("when", when)
        .block(steps, output.as_ref());
    Yaml::Map(fields.0)
}

fn undo(of: &Compensate) -> Fields {
    let Compensate { retry, only_completed, kind } = of;
    Fields::default()
        .map("task", kind.as_ref().map(|compensate::Kind::Task(own)| task(own)))
        .map("retry", retry.as_ref().map(policy))
        .flag("only_completed", *only_completed)
}

fn policy(of: &RetryPolicy) -> Fields {
    use retry_policy::Schedule;
    let RetryPolicy {
        jitter,
        max_attempts,
        max_duration,
        non_retryable_error_types,
        retryable_error_types,
        match_on,
        warning_on_retry,
        rules,
        schedule,
    } = of;
    let fields = match schedule {
        None => Fields::default(),
        Some(Schedule::Constant(own)) => Fields::default().map("constant", Some(constant(own))),
        Some(Schedule::Exponential(own)) => {
            Fields::default().map("exponential", Some(exponential(own)))
        }
        Some(Schedule::Random(own)) => Fields::default().map("random", Some(random(own))),
        Some(Schedule::Linear(own)) => Fields::default().map("linear", Some(linear(own))),
    };
    let match_on = MatchOn::try_from(*match_on).unwrap_or_default();
    fields
        .number("jitter", *jitter)
        .number("max_attempts", *max_attempts)
        .duration("max_duration", *max_duration)
        .texts("non_retryable_error_types", non_retryable_error_types)
        .texts("retryable_error_types", retryable_error_types)
        .name("match_on", match_on.as_str_name(), MatchOn::default().as_str_name())
        .flag("warning_on_retry", *warning_on_retry)
        .list("rules", rules.iter().map(rule).collect())
}

fn rule(of: &RetryRule) -> Yaml {
    use retry_rule::Schedule;
    let RetryRule { error_types, max_attempts, max_duration, match_on, schedule } = of;
    let fields = Fields::default().texts("error_types", error_types);
    let fields = match schedule {
        None => fields,
        Some(Schedule::Constant(own)) => fields.map("constant", Some(constant(own))),
        Some(Schedule::Exponential(own)) => fields.map("exponential", Some(exponential(own))),
        Some(Schedule::Random(own)) => fields.map("random", Some(random(own))),
        Some(Schedule::Linear(own)) => fields.map("linear", Some(linear(own))),
    };
    let match_on = MatchOn::try_from(*match_on).unwrap_or_default();
    let fields = fields
        .number("max_attempts", *max_attempts)
        .duration("max_duration", *max_duration)
        .name("match_on", match_on.as_str_name(), MatchOn::default().as_str_name());
    Yaml::Map(fields.0)
}

fn constant(of: &ConstantSchedule) -> Fields {
    let ConstantSchedule { interval } = of;
    Fields::default().duration("interval", *interval)
}

fn exponential(of: &ExponentialSchedule) -> Fields {
    let ExponentialSchedule { initial_interval, backoff_coefficient, max_interval } = of;
    Fields::default()
        .duration("initial_interval", *initial_interval)
        .number("backoff_coefficient", *backoff_coefficient)
        .duration("max_interval", *max_interval)
}

fn random(of: &RandomSchedule) -> Fields {
    let RandomSchedule { min, max } = of;
    Fields::default().duration("min", *min).duration("max", *max)
}

fn linear(of: &LinearSchedule) -> Fields {
    let LinearSchedule { initial, increment, max } = of;
    Fields::default()
        .duration("initial", *initial)
        .duration("increment", *increment)
        .duration("max", *max)
}

/// The fields of one message that are set, in the order in which they are written.
#[derive(Default)]
struct Fields(Vec<(String, Yaml)>);

impl Fields {
    fn add(mut self, key: &str, value: Option<Yaml>) -> Self {
        self.0.extend(value.map(|value| (key.to_owned(), value)));
        self
    }

    fn text(self, key: &str, text: &str) -> Self {
        let value = (!text.is_empty()).then(|| Yaml::Scalar(scalar(text)));
        self.add(key, value)
    }

    fn texts(self, key: &str, texts: &[String]) -> Self {
        self.list(key, texts.iter().map(|text| Yaml::Scalar(scalar(text))).collect())
    }

    fn flag(self, key: &str, flag: bool) -> Self {
        self.add(key, flag.then(|| Yaml::Scalar("true".to_owned())))
    }

    fn number(self, key: &str, number: Option<impl Into<Value>>) -> Self {
        self.add(key, number.map(|number| Yaml::Scalar(number.into().to_string())))
    }

    fn duration(self, key: &str, duration: Option<Duration>) -> Self {
        self.add(key, duration.map(|duration| Yaml::Scalar(duration.in_units())))
    }

    /// The name of an enum's value without its prefix; nothing for the one that is not specified.
    fn name(self, key: &str, name: &str, unspecified: &str) -> Self {
        let prefix = unspecified.trim_end_matches("UNSPECIFIED");
        let short = name.strip_prefix(prefix).unwrap_or(name);
        self.add(key, (name != unspecified).then(|| Yaml::Scalar(short.to_owned())))
    }

    fn template(self, key: &str, template: Option<&Template>) -> Self {
        // A template that is not JSON cannot have been registered.
        let value = |template: &Template| {
            template.value().unwrap_or_else(|_| Value::from(template.json.as_str()))
        };
        let written = |template: &Template| match value(template) {
            // A reader takes a plain null for a field that is not set.
            Value::Null => Yaml::Scalar(scalar("${null}")),
            other => plain(&other),
        };
        self.add(key, template.map(written))
    }

    fn map(self, key: &str, fields: Option<Self>) -> Self {
        self.add(key, fields.map(|fields| Yaml::Map(fields.0)))
    }

    fn steps(self, key: &str, steps: &[Step]) -> Self {
        self.list(key, steps.iter().map(one_step).collect())
    }

    /// The two fields that every message with a list of steps has.
    fn block(self, steps: &[Step], output: Option<&Template>) -> Self {
        self.steps("steps", steps).template("output", output)
    }

    fn list(self, key: &str, items: Vec<Yaml>) -> Self {
        let value = (!items.is_empty()).then_some(Yaml::List(items));
        self.add(key, value)
    }
}

/// An author's own value.
fn plain(value: &Value) -> Yaml {
    match value {
        Value::String(text) => Yaml::Scalar(scalar(text)),
        Value::Array(items) => Yaml::List(items.iter().map(plain).collect()),
        Value::Object(fields) => {
            Yaml::Map(fields.iter().map(|(key, value)| (scalar(key), plain(value))).collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => Yaml::Scalar(value.to_string()),
    }
}

/// A text without quotes where no reader could take it for anything else, else as JSON has it.
fn scalar(text: &str) -> String {
    const WORDS: [&str; 9] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let is_word = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-./".contains(&byte))
        && !WORDS.iter().any(|word| text.eq_ignore_ascii_case(word));
    if is_word { text.to_owned() } else { Value::from(text).to_string() }
}

fn entry(text: &mut String, indent: usize, key: &str, value: &Yaml) {
    text.push_str(&format!("{:indent$}{key}:", ""));
    match value {
        Yaml::List(items) if items.iter().any(|item| !is_short(item)) => {
            text.push('\n');
            items.iter().for_each(|item| element(text, indent, item));
        }
        Yaml::Map(fields) if !fields.is_empty() => {
            text.push('\n');
            fields.iter().for_each(|(key, value)| entry(text, indent + 2, key, value));
        }
        short => {
            text.push(' ');
            in_line(text, short);
            text.push('\n');
        }
    }
}

fn element(text: &mut String, indent: usize, item: &Yaml) {
    let begin = text.len();
    match item {
        Yaml::Map(fields) if !fields.is_empty() => {
            fields.iter().for_each(|(key, value)| entry(text, indent + 2, key, value));
            text.replace_range(begin + indent..begin + indent + 1, "-");
        }
        other => {
            text.push_str(&format!("{:indent$}- ", ""));
            in_line(text, other);
            text.push('\n');
        }
    }
}

fn is_short(value: &Yaml) -> bool {
    matches!(value, Yaml::Scalar(text) if text.len() <= 80)
}

fn in_line(text: &mut String, value: &Yaml) {
    match value {
        Yaml::Scalar(own) => text.push_str(own),
        Yaml::List(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                text.push_str(if index == 0 { "" } else { ", " });
                in_line(text, item);
            }
            text.push(']');
        }
        Yaml::Map(fields) => {
            text.push('{');
            for (index, (key, value)) in fields.iter().enumerate() {
                text.push_str(&format!("{}{key}: ", if index == 0 { "" } else { ", " }));
                in_line(text, value);
            }
            text.push('}');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::parse;
    use crate::v1::DefinitionFormat;

    const EVERYTHING: &str = r#"name: all
description: "What it is: \"everything\""
timeout: 1h30m
cleanup_timeout: 1d
cancel_grace: 0s
defaults:
  queue: fast
  schedule_to_start: 1m5s
  start_to_close: 1s500ms
  schedule_to_close: 1h
  heartbeat: 250ms
  retry:
    random:
      min: 1s
      max: 2s
    jitter: 0.5
    max_attempts: 4
    max_duration: 2m
    non_retryable_error_types: [payment.declined, "*"]
    retryable_error_types: [payment]
    match_on: ANY_CAUSE
    warning_on_retry: true
    rules:
    - error_types: [payment.slow, "no"]
      linear:
        initial: 1s
        increment: 2s
        max: 9s
      max_attempts: 2
      max_duration: 10s
      match_on: ROOT_CAUSE
steps:
- id: first
  description: plain
  when: "input.x > 1"
  task:
    type: a.b
    queue: slow
    input:
      "a b": "${input.x}"
      empty: []
      list:
      - [1, "2"]
      - k: null
        l: {}
      "n": 18446744073709551615
      "yes": true
    schedule_to_start: 1s
    start_to_close: 2s
    schedule_to_close: 3s
    heartbeat: 1s
    priority: -5
    delivery: AT_MOST_ONCE
  retry:
    exponential:
      initial_interval: 300ms
      backoff_coefficient: 2.0
      max_interval: 5s
  on_error: IGNORE
  allow_warning: true
  compensate:
    task:
      type: c
    retry:
      constant:
        interval: 1s
    only_completed: true
- id: total
  set:
    "n": "${steps.first.output.n}"
- id: check
  switch:
    cases:
    - when: "steps.total.output.n > 10"
      steps:
      - id: large
        fail:
          type: order.too_large
          message: "${input.id} is too large"
          details:
            limit: 10
          non_retryable: true
      output: "${steps.large.error}"
    - when: "false"
    default:
      steps:
      - id: small
        return:
          output: small
      output: large
- id: guarded
  try:
    steps:
    - id: inner
      switch:
        cases:
        - when: input.a
          steps:
          - id: innermost
            return: {}
        default: {}
    output: [1, 2]
  catch:
  - error_types: [order.too_large, "recoup.*"]
    match_on: ANY_CAUSE
    when: "error.details.limit > 1"
    steps:
    - id: again
      fail:
        rethrow: true
    output: "${error.type}"
  - {}
  on_error: IGNORE
- id: fan
  parallel:
    branches:
      left:
        steps:
        - id: leftmost
          set: 1
      "on":
        after: [left]
        steps:
        - id: last_of_all
          set: 2
        output: 3
    mode: WAIT_ALL
    concurrency: 2
  timeout: 1m
- id: lines
  for_each:
    items: input.lines
    item_key: item.sku
    mode: WAIT_ALL
    concurrency: 4
    steps:
    - id: in_a_line
      set: "${item}"
    output: "${index}"
- id: each
  for_each:
    items: "[1, 2]"
    steps:
    - id: in_each
      set: 1
finally:
- id: last
  task:
    type: d
    input: "0"
output: 0
"#;

    #[test]
    fn what_is_written_is_spelled_as_it_is_taught_and_reads_the_same() {
        let (definition, _) = parse(EVERYTHING, DefinitionFormat::Yaml).expect("a definition");
        let written = write(&definition);
        assert_eq!(written, EVERYTHING);
        for text in [
            "name: a\nsteps:\n- id: s\n  task: {type: t, input: [[], {}, [{a: [1]}]]}\n",
            "name: a\nsteps:\n- id: s\n  task: {type: t, input: \"é\\n\\t\\u0007 # x: y\"}\n",
            "name: a\nsteps:\n- id: s\n  task: {type: t, input: {}}\n  retry: {}\n  compensate: {}\n",
            "name: a\nsteps: [{id: s, set: [null]}, {id: t, try: {}}, {id: u, switch: {cases: [{}]}}]\n",
            include_str!("../../../examples/order/order.yaml"),
        ] {
            let (definition, _) = parse(text, DefinitionFormat::Yaml).expect(text);
            let written = write(&definition);
            let read = parse(&written, DefinitionFormat::Yaml);
            assert_eq!(read.expect(&written).0, definition, "{written}");
        }
    }

    #[test]
    fn null_template_is_written_so_that_it_counts_as_set() {
        let (read, _) =
            parse("name: a\nsteps: [{id: s, set: null}]\noutput: null\n", DefinitionFormat::Yaml)
                .expect("a definition");
        assert_eq!((&read.steps[0].kind, &read.output), (&None, &None));

        let null = Template { json: "null".to_owned() };
        let step = Step {
            id: "s".to_owned(),
            kind: Some(step::Kind::Set(null.clone())),
            ..Step::default()
        };
        let definition = WorkflowDefinition {
            name: "a".to_owned(),
            steps: vec![step],
            output: Some(null),
            ..WorkflowDefinition::default()
        };
        let written = write(&definition);
        let (read, _) = parse(&written, DefinitionFormat::Yaml).expect(&written);
        let expression = Template::new(&Value::from("${null}"));
        assert_eq!(read.output.as_ref(), Some(&expression), "{written}");
        assert_eq!(read.steps[0].kind, Some(step::Kind::Set(expression)), "{written}");
    }
}
