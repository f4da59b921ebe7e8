//! Tests of conditions and templates, evaluated on a state that is built by hand.

use std::cell::Cell;
use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::error::Category;
use crate::event::StopCause;
use crate::execution::{
    BASE_BYTES, CompensationState, Execution, Ledger, Node, NodeKind, NodeState, Nodes, OpenIndex,
    Phase, Scope as Block, State, Stop, TraceContext,
};
use crate::id::ExecutionId;
use crate::limits::EXPRESSION_READ_BYTES_MAX;
use crate::time::Timestamp;
use crate::tree::{Place, ScopeId, Tree};

fn node(path: &str, state: NodeState) -> Node {
    let (path, scope, kind) = (path.into(), Block::Steps, NodeKind::Skipped);
    let (part, handled) = (None, None);
    let (generation, deadline, stopped, closing) = (0, None, None, None);
    Node { path, scope, generation, kind, state, part, deadline, stopped, handled, closing }
}

fn nodes(list: impl IntoIterator<Item = Node>) -> Nodes {
    let mut nodes = Nodes::default();
    for node in list {
        nodes.push(node);
    }
    nodes
}

fn execution(input: &str) -> Execution {
    let declined = TaskError {
        cause: Some(Box::new(TaskError::new("card.expired", "in May"))),
        details: Some(Payload::json(r#"{"code": 7}"#)),
        category: Category::Permanent,
        ..TaskError::new("payment.declined", "no")
    };
    let completed = |output: &'static str| NodeState::Completed { output: Payload::json(output) };
    Execution {
        id: ExecutionId(uuid::Uuid::from_u128(1)),
        sequence: 1,
        event_count: 1,
        decided_at: Timestamp::default(),
        namespace: "acme.shop".into(),
        workflow: "order".into(),
        version: 3,
        key: Some("order-7".into()),
        input: Payload::json(input.to_owned()),
        trace: TraceContext::default(),
        format: 1,
        started_at: Timestamp::from_micros(1_767_323_045_678_901),
        deadline: None,
        state: State::Running,
        phase: Phase::Steps,
        compensation: CompensationState::None,
        run: 2,
        nodes: nodes([
            node("charge", completed(r#"{ "id": "ch_1",  "fee": 1.5 }"#)),
            node("skipped", NodeState::Skipped),
            node("ignored", NodeState::Ignored { error: declined.clone() }),
            node(
                "binary",
                NodeState::Completed {
                    output: Payload {
                        content_type: "image/png".into(),
                        ..Payload::json("\0\u{1}")
                    },
                },
            ),
        ]),
        ledger: Ledger::default(),
        open: OpenIndex::default(),
        output: None,
        stop: Some(Stop {
            cause: StopCause::Failed,
            error: declined,
            step: Some("ignored".into()),
            grace_until: Timestamp::default(),
        }),
        termination: None,
        cancel_reason: None,
        cleanup_deadline: None,
        warnings: Vec::new(),
        ended_at: None,
        error: None,
        requests: VecDeque::new(),
        weight: BASE_BYTES,
    }
}

const STEPS: [&str; 5] = ["charge", "skipped", "ignored", "binary", "later"];

fn with_scope<T>(has_error: bool, test: impl FnOnce(&Scope<'_>) -> T) -> T {
    let mut tree = Tree::default();
    for id in STEPS {
        tree.add_step(ScopeId::STEPS, id.into());
    }
    let place = Place { scope: ScopeId::STEPS, position: 4 };
    test(&Scope { tree: &tree, place, has_error, trust: Trust::Unchecked })
}

fn compile(json: &str) -> Result<Template, Vec<CompileError>> {
    with_scope(true, |scope| Template::compile(json, scope))
}

fn render_on(input: &str, json: &str) -> Result<Payload, TaskError> {
    let execution = execution(input);
    let error = execution.stop.as_ref().map(|stop| &stop.error);
    let template = compile(json).unwrap_or_else(|errors| panic!("{json}: {errors:?}"));
    template.render(Variables {
        execution: &execution,
        scope: &Block::Steps,
        error,
        origin: None,
        parsed: &Cell::new(0),
    })
}

const INPUT: &str = r#"{"id": "o1", "n": 9007199254740993, "big": 18446744073709551615, "f": 2.0,
    "items": [{"sku": "a", "price": 3}, {"sku": "b", "price": 4}], "text": "say \"hi\"\n",
    "map": {"b": 1, "a": 2, "c": 3}, "none": null}"#;

fn render(json: &str) -> Result<Payload, TaskError> {
    render_on(INPUT, json)
}

/// The result of a template that consists of this expression.
fn value(source: &str) -> Result<String, TaskError> {
    let json = serde_json::Value::from(format!("${{{source}}}")).to_string();
    render(&json).map(|payload| String::from_utf8(payload.data.into()).expect("JSON is UTF-8"))
}

fn problems(source: &str) -> Vec<Problem> {
    let compiled = with_scope(false, |scope| Condition::compile(source, scope));
    match compiled {
        Ok(_) => Vec::new(),
        Err(errors) => errors.into_iter().map(|error| error.problem).collect(),
    }
}

#[test]
fn rendering_parses_only_the_payloads_it_names_up_to_a_byte_limit() {
    let large = format!("\"{}\"", "x".repeat(PAYLOAD_BYTES_MAX - 2));
    let mut execution = execution(&large);
    let completed = || NodeState::Completed { output: Payload::json(large.clone()) };
    execution.nodes = nodes(STEPS[..4].iter().map(|path| node(path, completed())));
    let render = |json: &str| {
        let parsed = Cell::new(0);
        let variables = Variables {
            execution: &execution,
            scope: &Block::Steps,
            error: None,
            origin: None,
            parsed: &parsed,
        };
        let rendered = compile(json).expect("it compiles").render(variables);
        (rendered.map(|payload| payload.data.len()), parsed.get())
    };
    assert_eq!(render("\"${1 + 1}\""), (Ok(1), 0));
    assert_eq!(
        render("\"${steps.charge.output}\""),
        (Ok(PAYLOAD_BYTES_MAX), 0),
        "passed on without parsing"
    );
    let all = ["input", "steps.charge.output", "steps.skipped.output", "steps.ignored.output"];
    let sum = |names: &[&str]| {
        let sizes: Vec<_> = names.iter().map(|name| format!("size({name})")).collect();
        // `input` is named a second time but must not be read again.
        serde_json::Value::from(format!("${{{} + size(input)}}", sizes.join(" + "))).to_string()
    };
    assert_eq!(render(&sum(&all[..1])).1, PAYLOAD_BYTES_MAX);
    assert_eq!(render(&sum(&all)), (Ok(8), EXPRESSION_READ_BYTES_MAX), "at the limit");
    let over = render(&sum(&[&all[..], &["steps.binary.output"]].concat())).0;
    let error = over.expect_err("a payload too many");
    assert_eq!(error.error_type, builtin::EXPRESSION);
    assert!(error.message.contains("`steps.binary.output`"), "{}", error.message);
    assert!(error.message.contains("more than 8388608 bytes of JSON"), "{}", error.message);
}

#[test]
fn a_template_mixes_values_text_and_literals() {
    for (template, rendered) in [
        (r#"{"a": "${input.id}", "b": [1, "x", null]}"#, r#"{"a":"o1","b":[1,"x",null]}"#),
        (r#""${input.n}""#, "9007199254740993"),
        (r#""${input.big}""#, "18446744073709551615"),
        (r#""${input.f}""#, "2.0"),
        (r#""${ input.items[1].sku }""#, r#""b""#),
        (
            r#""order ${input.id}: ${input.n}, ${input.none}""#,
            r#""order o1: 9007199254740993, null""#,
        ),
        (r#""${input.text}|${input.map}""#, r#""say \"hi\"\n|{\"a\":2,\"b\":1,\"c\":3}""#),
        (r#""$${input.id} ${input.id}""#, r#""${input.id} o1""#),
        (r#"{"$${k}": "${1 + 1}"}"#, r#"{"${k}":2}"#),
        (r#""\u0024{input.id}""#, r#""o1""#),
        (r#""${steps.charge.output.fee}""#, "1.5"),
        (r#"{"z": 1, "a": "${{'y': 1, 'x': [true]}}"}"#, r#"{"a":{"x":[true],"y":1},"z":1}"#),
    ] {
        let payload = render(template).unwrap_or_else(|error| panic!("{template}: {error:?}"));
        assert_eq!(payload, Payload::json(rendered), "{template}");
    }
}

#[test]
fn expressions_evaluate_as_cel_specifies() {
    for (source, expected) in [
        ("input.items.map(i, i.price)", "[3,4]"),
        ("input.items.filter(i, i.price > 3).map(i, i.sku)", r#"["b"]"#),
        ("input.items.all(i, i.price > 3)", "false"),
        ("input.items.exists_one(i, i.sku == 'a')", "true"),
        ("input.map.map(k, k)", r#"["a","b","c"]"#),
        ("input.map.map(k, input.map[k])", "[2,1,3]"),
        ("has(input.missing)", "false"),
        ("input.?missing.orValue(5)", "5"),
        ("input.?missing", "null"),
        ("size(input.items) + 1", "3"),
        ("input.id + '-' + string(run)", r#""o1-2""#),
        ("'o1' in [input.id] && input.id.startsWith('o')", "true"),
        ("type(1) == int", "true"),
        ("steps.skipped.output", "null"),
        ("steps.skipped.error", "null"),
        ("steps.ignored.output == null", "true"),
        ("steps.ignored.error.type", r#""payment.declined""#),
        ("steps.ignored.error.cause.message", r#""in May""#),
        ("error.details.code", "7"),
        ("error.category", r#""PERMANENT""#),
        ("error.cause.category", "null"),
        ("execution.key + '@' + execution.namespace", r#""order-7@acme.shop""#),
        ("execution.started_at", r#""2026-01-02T03:04:05.678901Z""#),
        ("execution.failed_step", r#""ignored""#),
        ("execution.version + run", "5"),
        ("{1: 'a', true: 'b'}", r#"{"1":"a","true":"b"}"#),
        ("[[1, 2], [3]].map(l, l.map(x, x * 2))", "[[2,4],[6]]"),
        ("9223372036854775807", "9223372036854775807"),
    ] {
        match value(source) {
            Ok(json) => assert_eq!(json, expected, "{source}"),
            Err(error) => panic!("{source}: {error:?}"),
        }
    }
}

#[test]
fn payloads_that_are_only_passed_on_are_not_parsed_or_changed() {
    let execution = execution(" {not json ");
    let parsed = Cell::new(0);
    let variables = Variables {
        execution: &execution,
        scope: &Block::Steps,
        error: None,
        origin: None,
        parsed: &parsed,
    };
    let pass = |json| compile(json).expect("it compiles").render(variables);
    assert_eq!(pass(r#""${input}""#), Ok(execution.input.clone()));
    let binary = pass(r#""${ steps.binary.output }""#).expect("it is not parsed");
    assert_eq!(binary.content_type, "image/png");
    assert_eq!(pass(r#""${steps.skipped.output}""#), Ok(Payload::null()));
    let constant = r#"{ "b": 123456789012345678901234567890, "a": "$" }"#;
    assert_eq!(pass(constant), Ok(Payload::json(constant)));
}

#[test]
fn run_time_failures_are_non_retryable_expression_errors() {
    for (source, message) in [
        ("input.missing", "no such key: missing"),
        ("input.n / 0", "division by zero"),
        ("input.n % 0", "remainder of a division by zero"),
        ("input.n * input.n", "mul overflows"),
        ("-(-9223372036854775807 - 1)", "overflows"),
        ("input.items[2]", "out of bounds"),
        ("input.id + 1", "add cannot be applied to string and int"),
        ("[1] + {'a': 1}", "a map cannot be added"),
        ("int('x')", "int: "),
        ("b'x'", "no JSON form"),
        ("1.0 / 0.0", "the number inf has no JSON form"),
        ("type(1)", "no JSON form"),
        ("{'a': 1, 'a': 2}", "twice"),
        ("steps.binary.output.x", "its content type is `image/png`"),
        ("steps.charge.output.nothing", "no such key: nothing"),
    ] {
        let error = value(source).expect_err(source);
        assert_eq!(error.error_type, builtin::EXPRESSION, "{source}");
        assert!(error.is_non_retryable());
        assert!(error.message.contains(message), "{source}: {}", error.message);
    }
    let error = render_on("{", r#""${input.a}""#).expect_err("it is not JSON");
    assert!(error.message.contains("`input` cannot be read"), "{}", error.message);
    let deep = "[".repeat(10_000);
    let error = render_on(&deep, r#""${input.a}""#).expect_err("it is too deep");
    assert_eq!(error.error_type, builtin::EXPRESSION);
}

#[test]
fn condition_must_evaluate_to_a_boolean() {
    let execution = execution(INPUT);
    let parsed = Cell::new(0);
    let variables = Variables {
        execution: &execution,
        scope: &Block::Steps,
        error: None,
        origin: None,
        parsed: &parsed,
    };
    let evaluate = |source| {
        with_scope(false, |scope| Condition::compile(source, scope).expect(source))
            .evaluate(variables)
    };
    assert_eq!(evaluate("input.n > 1"), Ok(true));
    assert_eq!(evaluate("steps.charge.output.id == 'x'"), Ok(false));
    let error = evaluate("input.n").expect_err("a number is not a condition");
    assert!(
        error.message.contains("a condition must be a boolean, but this is of type int"),
        "{}",
        error.message
    );
}

#[test]
fn invalid_expressions_are_rejected_at_compile_time() {
    use Problem as P;
    for (source, problem) in [
        ("inputs.a", P::UnknownVariable("inputs".into())),
        ("[1].map(x, x + y)", P::UnknownVariable("y".into())),
        ("[1].all(x, x > 0) && x", P::UnknownVariable("x".into())),
        ("item", P::ItemOutsideLoop("item".into())),
        ("line", P::UnknownVariable("line".into())),
        (".input", P::UnknownVariable(".input".into())),
        ("steps.nobody.output", P::UnknownStep("nobody".into())),
        ("has(steps.nobody.output.a)", P::UnknownStep("nobody".into())),
        ("steps.later.output", P::ForwardReference("later".into())),
        ("[1].map(x, steps.later.output)", P::ForwardReference("later".into())),
        ("steps.charge.result", P::StepsAsValue),
        ("steps.charge", P::StepsAsValue),
        ("steps", P::StepsAsValue),
        ("steps['charge'].output", P::StepsAsValue),
        ("has(steps.charge.output)", P::HasOfStep),
        ("has(steps.charge)", P::HasOfStep),
        ("error.type", P::ErrorOutsideHandler),
        ("execution.state", P::UnknownField { of: "execution", field: "state".into() }),
        ("has(execution.state)", P::UnknownField { of: "execution", field: "state".into() }),
        (
            "steps.charge.error.text",
            P::UnknownField { of: "steps.<id>.error", field: "text".into() },
        ),
        ("[1].map(input, input)", P::HidesVariable("input".into())),
        ("now()", P::UnknownFunction("now".into())),
        ("input.a.matches('x')", P::UnknownFunction("matches".into())),
        ("input.a.map(1)", P::UnknownFunction("map".into())),
        ("Message{a: 1}", P::Message),
        ("[1].all(a, [1].all(b, [1].all(c, [1].all(d, true))))", P::TooManyComprehensions),
    ] {
        assert_eq!(problems(source), [problem], "{source}");
    }
    assert!(problems("[1].all(a, [1].all(b, [1].all(c, true)))").is_empty());
    assert!(problems("[1].map(a, a).map(b, b).map(c, c).map(d, d).size() == 1").is_empty());
    assert!(matches!(problems("1 +")[..], [P::Syntax { line: 1, .. }, ..]));
    assert!(matches!(problems("")[..], [P::Syntax { .. }, ..]));
    let long = |length: usize| format!("'{}' == ''", "x".repeat(length - 8));
    assert!(problems(&long(4096)).is_empty());
    assert_eq!(problems(&long(4097)), [P::TooLong(4097)]);
}

#[test]
fn template_compilation_reports_all_problems() {
    let errors = compile(r#"{"a": "${x}", "b": "${ y } ${", "${z}": 1, "c": "${input}"}"#);
    let errors = errors.expect_err("every part is invalid");
    let problems: Vec<_> = errors.into_iter().map(|error| error.problem).collect();
    assert_eq!(
        problems,
        [Problem::ExpressionInName, Problem::UnknownVariable("x".into()), Problem::Unterminated,]
    );
    let errors = compile("{a: 1}").expect_err("YAML is not JSON");
    assert!(matches!(errors[0].problem, Problem::NotJson(_)));
}

/// Evaluates the worst shapes that the source limit admits, on half of a thread's usual stack.
#[test]
fn no_source_overflows_the_stack() {
    let sources = || {
        let mut sources: Vec<String> = [
            "(",
            "[",
            "{",
            "!",
            "-",
            "a.",
            "a+",
            "a&&",
            "a||",
            "a?b:",
            "a[",
            "f(",
            "a.f(",
            "{1:",
            "a in ",
            "a<",
            "\"",
            "[1].map(x,",
            "- ",
            ".a",
            "a ?",
            "has(",
            "r'''",
            "//",
            "`",
            "M{",
            "a?.b",
            "a[?",
            "1,",
            "\u{1F600}",
            "'\n(",
            "// '\n(",
            "'\\'",
            "1==",
            "1!=",
        ]
        .iter()
        .map(|piece| piece.repeat(4096 / piece.len()))
        .collect();
        for count in [8, 15, 24, 31, 32, 33, 60, 200, 400] {
            for (before, middle, after) in [
                ("", "1", "+1"),
                ("", "input", ".a"),
                ("", "input", "[0]"),
                ("", "true", "&&true"),
                ("", "true", "||!true"),
                ("true?1:", "1", ""),
                ("", "input", ".map(x,x)"),
                ("[1].map(x,", "1", ")"),
                ("", "1", " in [1]"),
                ("!", "true", ""),
                ("-", "input.n", ""),
                ("(", "1", ")"),
                ("[", "1", "]"),
                ("{'a':", "1", "}"),
                ("[1].all(x,[", "1", "][0]==1)"),
                ("dyn(", "1", ")"),
                ("[1,", "1", "][0]"),
                ("(1+", "1", ")+1"),
                ("", "input", ".size()"),
                ("", "input", ".?a"),
            ] {
                sources.push(format!("{}{middle}{}", before.repeat(count), after.repeat(count)));
            }
        }
        let mut evaluated = 0;
        for source in &sources {
            let compiled = with_scope(true, |scope| Condition::compile(source, scope));
            if let Ok(condition) = compiled {
                let execution = execution(INPUT);
                let parsed = Cell::new(0);
                let variables = Variables {
                    execution: &execution,
                    scope: &Block::Steps,
                    error: None,
                    origin: None,
                    parsed: &parsed,
                };
                let _outcome = condition.evaluate(variables);
                evaluated += 1;
            }
        }
        evaluated
    };
    let thread = std::thread::Builder::new().stack_size(1024 * 1024).spawn(sources);
    let evaluated = thread.expect("a thread starts").join().expect("nothing panics");
    assert!(evaluated > 40, "only {evaluated} sources were accepted");
}

#[test]
fn only_deeply_nested_expressions_are_rejected_as_too_deep() {
    let clauses = ["input.order.customer.country == 'DE'"; 60].join(" || ");
    assert!(problems(&clauses).is_empty());
    let sum = ["input.a.b"; 25].join(" + ");
    assert!(problems(&sum).is_empty());
    let list = format!("[{}] == []", ["input.a.b.c + 1"; 100].join(", "));
    assert!(problems(&list).is_empty());
    assert_eq!(problems(&["1"; 60].join("+")), [Problem::TooDeep]);
    let hidden = format!("// it's\n{}1{}", "(".repeat(40), ")".repeat(40));
    assert_eq!(problems(&hidden), [Problem::TooDeep]);
}

#[test]
fn evaluation_that_takes_too_much_work_is_an_error() {
    let list = |length: usize| format!("[{}]", vec!["1"; length].join(","));
    let big = format!(r#"{{"l": {}, "s": "{}"}}"#, list(5_000), "x".repeat(1_000_000));
    for source in [
        "input.l.map(a, input.l.map(b, input.l.map(c, c)))",
        "input.l.all(a, input.l.all(b, input.l.all(c, c > 0)))",
        "input.l.map(a, input)",
        "input.l.map(a, input.s + 'x')",
        "input.l.filter(a, input.s.contains('y'))",
        "input.l.exists(a, input.s == input.s + 'y')",
        "input.l.exists(a, 2 in input.l)",
        "input.l.map(a, {'x': input.l})",
    ] {
        let json = serde_json::Value::from(format!("${{{source}}}")).to_string();
        let error = render_on(&big, &json).expect_err(source);
        assert!(error.message.contains("takes too much work"), "{source}: {}", error.message);
    }
    let copies = vec!["input"; 600].join(",");
    let json = format!(r#""${{[{copies}]}}""#);
    assert!(render_on(&big, &json).is_err());
    let sum = vec!["input.s"; 25].join("+");
    assert!(render_on(&big, &format!(r#""${{size({sum})}}""#)).is_err());
    assert!(render_on(&big, r#""${input.l.map(a, input.l.size() + a)[7]}""#).is_ok());
}

#[test]
fn result_above_the_payload_limit_is_rejected() {
    let text = |length: usize| format!(r#"{{"s": "{}"}}"#, "x".repeat(length));
    let limit = PAYLOAD_BYTES_MAX;
    assert_eq!(render_on(&text(limit - 2), r#""${input.s}""#).expect("it fits").size(), limit);
    for (input, template) in [
        (text(limit - 1), r#""${input.s}""#),
        (text(limit - 1), r#""${input.s} ${input.s}""#),
        (text(limit / 2), r#"{"a": "${input.s}", "b": "${input.s}"}"#),
        (text(limit / 2), r#""${[input.s, input.s, 'x']}""#),
    ] {
        let error = render_on(&input, template).expect_err("it is too large");
        assert_eq!(error.error_type, builtin::PAYLOAD_TOO_LARGE, "{template}");
    }
}

/// Sources made of random pieces of CEL, some of which happen to be valid.
fn source() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "input",
        "input.id",
        "input.n",
        "input.f",
        "input.items",
        "input.map",
        "steps.charge.output",
        "1",
        "0",
        "-1",
        "2u",
        "0.5",
        "9223372036854775807",
        "'a'",
        "b'a'",
        "null",
        "true",
        "[]",
        "{}",
        "+",
        "-",
        "*",
        "/",
        "%",
        "==",
        "!=",
        "<",
        ">=",
        "&&",
        "||",
        "!",
        "?",
        ":",
        "in",
        ".",
        ",",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "[1, 2]",
        "{'a': 1}",
        ".map(x, ",
        ".all(x, ",
        ".exists_one(x, ",
        "x",
        ".size()",
        "int(",
        "uint(",
        "double(",
        "string(",
        "bytes(",
        "has(",
        "optional.of(",
        ".?a",
        "[?0]",
        "type(",
        "dyn(",
        ".orValue(",
        ".value()",
        "'",
        "\"",
        "\\",
        "//",
        "`",
        "\u{e9}",
        "$",
        "{'a': ?x}",
        "'\\u12'",
        "'\\xff'",
        "0x",
        "1e999",
        "18446744073709551616",
        "@result",
        "r'",
    ]);
    prop::collection::vec(piece, 0..14).prop_map(|pieces| pieces.join(" "))
}

/// Sources that parse but combine values of any types.
fn well_formed() -> impl Strategy<Value = String> {
    let leaf = prop::sample::select(vec![
        "input",
        "input.n",
        "input.big",
        "input.f",
        "input.id",
        "input.items",
        "input.map",
        "input.none",
        "steps.charge.output",
        "error",
        "execution",
        "run",
        "x",
        "0",
        "1",
        "-1",
        "2u",
        "0u",
        "0.5",
        "-0.0",
        "1e308",
        "9223372036854775807",
        "-9223372036854775807",
        "18446744073709551615u",
        "''",
        "'a'",
        "'é🦀'",
        "b'\\xff'",
        "null",
        "true",
        "false",
        "[]",
        "{}",
        "[1, 'a', 2u]",
        "{'a': 1, 2: 'b', true: null}",
        "int",
        "optional.none()",
    ]);
    let expression = leaf.prop_map(String::from).prop_recursive(4, 24, 3, |inner| {
        let operators = vec![
            "+", "-", "*", "/", "%", "==", "!=", "<", "<=", ">", ">=", "in", "&&", "||",
        ];
        let binary = prop::sample::select(operators);
        let functions =
            vec!["int", "uint", "double", "string", "bytes", "bool", "type", "dyn", "size", "optional.of"];
        let function = prop::sample::select(functions);
        let macros = vec!["map", "filter", "all", "exists", "exists_one"];
        let methods = vec!["contains", "startsWith", "endsWith", "or", "orValue"];
        prop_oneof![
            4 => (inner.clone(), binary, inner.clone()).prop_map(|(a, operator, b)| format!("({a} {operator} {b})")),
            2 => (function, inner.clone()).prop_map(|(function, a)| format!("{function}({a})")),
            2 => (inner.clone(), prop::sample::select(macros), inner.clone())
                .prop_map(|(a, name, b)| format!("({a}).{name}(x, {b})")),
            1 => (inner.clone(), prop::sample::select(methods), inner.clone())
                .prop_map(|(a, name, b)| format!("({a}).{name}({b})")),
            1 => (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a})[{b}]")),
            1 => (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a})[?{b}]")),
            1 => (inner.clone(), inner.clone(), inner.clone()).prop_map(|(a, b, c)| format!("({a} ? {b} : {c})")),
            1 => (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{{{a}: {b}}}")),
            1 => (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("[{a}, ?{b}]")),
            1 => inner.clone().prop_map(|a| format!("-({a})")),
            1 => inner.clone().prop_map(|a| format!("!({a})")),
            1 => inner.prop_map(|a| format!("({a}).a")),
        ]
    });
    expression.prop_map(|expression| format!("[1].map(x, {expression})"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..Default::default() })]

    #[test]
    fn rendering_never_panics_and_is_deterministic(source in prop_oneof![source(), well_formed()]) {
        let json = serde_json::Value::from(format!("${{{source}}}")).to_string();
        if let Ok(template) = compile(&json) {
            let execution = execution(INPUT);
            let parsed = Cell::new(0);
    let variables = Variables { execution: &execution, scope: &Block::Steps, error: None, origin: None, parsed: &parsed };
            let first = template.render(variables);
            prop_assert_eq!(&template.render(variables), &first);
            let again = compile(&json).expect("it compiled before").render(variables);
            prop_assert_eq!(again, first);
        }
    }

    #[test]
    fn compiling_any_text_never_panics(text in "[${}'\"\\\\a/\n]{0,24}") {
        let json = serde_json::Value::from(text).to_string();
        let _compiled = compile(&json);
    }

    #[test]
    fn text_without_expressions_is_unchanged(text in "[^$]{0,40}") {
        let json = serde_json::json!([text, "${1}"]).to_string();
        let expected = serde_json::json!([text, 1]).to_string();
        prop_assert_eq!(render(&json), Ok(Payload::json(expected)));
    }
}
