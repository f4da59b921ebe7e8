//! Parses an expression, checks the names that it uses and the way it is built, and makes its costly parts
//! pay from the budget.

use cel::IdedExpr;
use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, SelectExpr, operators,
};
use cel::common::types::CelInt;
use cel::parser::ParseErrors;

use super::budget::{ADDEND, BUDGET, CHARGE, ENVIRONMENT, RANGE};
use super::problem::{Problem, shorten};
use super::split::string_end;
use super::variables::{
    BranchRead, ERROR_FIELDS, EXECUTION_FIELDS, ItemField, ItemRead, ORIGIN_FIELDS, Read, StepRead,
};
use crate::limits::{CEL_COMPREHENSIONS_MAX, CEL_DEPTH_MAX, CEL_SOURCE_BYTES_MAX};
use crate::tree::{Place, Sight, Tree};

/// The greatest depth that any release has accepted. This limit protects the stack, so it also applies to
/// expressions that were accepted earlier. It must never be lowered.
const ACCEPTED_DEPTH_MAX: usize = 32;
/// The greatest depth after macros have been expanded and calls for the budget have been added.
const EXPANDED_DEPTH_MAX: usize = 2 * ACCEPTED_DEPTH_MAX;

const VARIABLES: &[&str] = &["input", "steps", "branches", "execution", "run", "error"];
const TYPES: &[&str] = &[
    "bool",
    "bytes",
    "double",
    "int",
    "list",
    "map",
    "null_type",
    "optional_type",
    "string",
    "type",
    "uint",
];
const FUNCTIONS: &[&str] =
    &["size", "string", "int", "uint", "double", "bool", "bytes", "dyn", "type"];
const METHODS: &[&str] =
    &["size", "contains", "startsWith", "endsWith", "hasValue", "value", "or", "orValue"];
const OPTIONALS: &[&str] = &["of", "none", "ofNonZeroValue"];

/// Whether the rules have been applied to an expression before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// For registration: every rule is applied.
    Unchecked,
    /// The expression was accepted earlier, under these rules or others. It is compiled as far as
    /// evaluation needs, without applying the rules again.
    Accepted,
}

/// What an expression may refer to.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// The places of all steps of the workflow.
    pub tree: &'a Tree,
    /// The place of the expression. It may read the steps that are visible from there.
    pub place: Place,
    /// Whether the variable `error` exists, which is so in handlers, `on_failure`,
    /// `finally` and compensations.
    pub has_error: bool,
    pub trust: Trust,
}

pub(super) fn compile(
    source: &str,
    scope: &Scope<'_>,
    reads: &mut Vec<Read>,
) -> Result<IdedExpr, Vec<Problem>> {
    let (depth_max, is_new) = match scope.trust {
        Trust::Unchecked => (CEL_DEPTH_MAX, true),
        Trust::Accepted => (ACCEPTED_DEPTH_MAX, false),
    };
    if is_new && source.len() > CEL_SOURCE_BYTES_MAX {
        return Err(vec![Problem::TooLong(source.len())]);
    }
    if is_deeper(source, depth_max) {
        return Err(vec![Problem::TooDeep]);
    }
    let parser = ENVIRONMENT.parser().max_recursion_depth(depth_max as u16);
    let mut root = parser.parse(source).map_err(|errors| syntax(&errors))?;
    let mut check = Check {
        scope,
        reads,
        problems: Vec::new(),
        bound: Vec::new(),
        depth: 0,
        comprehensions: 0,
    };
    check.expression(&mut root);
    if check.problems.is_empty() { Ok(root) } else { Err(check.problems) }
}

/// The variable that makes up the whole expression, if the expression is `input` or `steps.<id>.output`.
pub(super) fn whole_variable(root: &IdedExpr, scope: &Scope<'_>) -> Option<Read> {
    match path(&root.expr)?[..] {
        ["input"] => Some(Read::Input),
        ["steps", id, "output"] => {
            let node = scope.tree.find(id)?;
            Some(Read::Output(StepRead { id: id.into(), path: scope.tree.own_path(node) }))
        }
        _ => None,
    }
}

/// Whether an expression may nest deeper than `max`. This is checked before any recursive code looks at the
/// expression. The estimate is never too low: a tree of binary operators is at most as deep as its number
/// of operators, plus its deepest operand. Chains of `&&` and `||` do not count, because the parser
/// balances them.
fn is_deeper(source: &str, max: usize) -> bool {
    #[derive(Default)]
    struct Level {
        /// Depth of the current operand: its deepest bracket, and its fields, calls and unary operators.
        operand: usize,
        deepest_operand: usize,
        operators: usize,
        deepest: usize,
    }
    impl Level {
        fn operator(&mut self) {
            self.operators += 1;
            self.deepest_operand = self.deepest_operand.max(std::mem::take(&mut self.operand));
        }

        fn depth(&self) -> usize {
            self.deepest.max(self.operators + self.deepest_operand.max(self.operand))
        }

        fn separator(&mut self) {
            *self = Self { deepest: self.depth(), ..Self::default() };
        }
    }

    let mut levels = vec![Level::default()];
    let bytes = source.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let Some(level) = levels.last_mut() else {
            return true;
        };
        match bytes[at] {
            b'"' | b'\'' => {
                // The parser reports a string without an end and continues after its quote, so this scan
                // does too.
                at = string_end(bytes, at).unwrap_or(at + 1);
                continue;
            }
            b'/' if bytes[at..].starts_with(b"//") => {
                let line = bytes[at..].iter().position(|byte| *byte == b'\n');
                at = line.map_or(bytes.len(), |line| at + line);
                continue;
            }
            b'(' | b'[' | b'{' => levels.push(Level::default()),
            b')' | b']' | b'}' => {
                let inner = level.depth() + 1;
                if levels.len() > 1 {
                    levels.pop();
                }
                if let Some(level) = levels.last_mut() {
                    level.operand = level.operand.max(inner) + 1;
                }
            }
            b',' | b'&' | b'|' => level.separator(),
            b'.' | b'!' => level.operand += 1,
            b'+' | b'-' | b'*' | b'/' | b'%' | b'?' | b':' | b'<' | b'>' | b'=' => level.operator(),
            b'i' if bytes[at..].starts_with(b"in ") => level.operator(),
            _ => {}
        }
        at += 1;
        // `<=`, `==` and `!=` are one operator each.
        if at < bytes.len() && bytes[at] == b'=' {
            at += 1;
        }
        if levels.len() > max || levels.last().is_some_and(|level| level.depth() > max) {
            return true;
        }
    }
    false
}

fn syntax(errors: &ParseErrors) -> Vec<Problem> {
    let place = |place: isize| usize::try_from(place).unwrap_or(0);
    let problems = errors.errors.iter().take(3).map(|error| Problem::Syntax {
        line: place(error.pos.0),
        column: place(error.pos.1),
        message: shorten(&error.msg, 200),
    });
    problems.collect()
}

/// The names in `a.b.c`. None for anything else, including `has(a.b)`.
fn path(expr: &Expr) -> Option<Vec<&str>> {
    let mut names = Vec::new();
    let mut expr = expr;
    loop {
        match expr {
            Expr::Ident(name) => {
                names.push(name.as_str());
                names.reverse();
                return Some(names);
            }
            Expr::Select(select) if !select.test => {
                names.push(&select.field);
                expr = &select.operand.expr;
            }
            _ => return None,
        }
    }
}

struct Check<'a> {
    scope: &'a Scope<'a>,
    reads: &'a mut Vec<Read>,
    problems: Vec<Problem>,
    /// The variables of the surrounding comprehensions.
    bound: Vec<String>,
    depth: usize,
    comprehensions: usize,
}

impl Check<'_> {
    fn expression(&mut self, node: &mut IdedExpr) {
        if self.depth > EXPANDED_DEPTH_MAX {
            // Evaluation is recursive, so this limit also applies to accepted expressions.
            if !self.problems.contains(&Problem::TooDeep) {
                self.problems.push(Problem::TooDeep);
            }
            return;
        }
        self.depth += 1;
        match &mut node.expr {
            Expr::Unspecified | Expr::Literal(_) => {}
            Expr::Ident(name) => {
                if !self.is_bound(name) && !TYPES.contains(&name.as_str()) {
                    let name = name.clone();
                    self.variable(&[&name], None);
                }
            }
            Expr::Select(select) => self.select(select),
            Expr::Call(_) => self.call(node),
            Expr::List(list) => {
                for element in &mut list.elements {
                    self.expression(element);
                    charge(element);
                }
            }
            Expr::Map(map) => {
                for entry in &mut map.entries {
                    match &mut entry.expr {
                        EntryExpr::MapEntry(entry) => {
                            self.expression(&mut entry.key);
                            self.expression(&mut entry.value);
                            charge(&mut entry.value);
                        }
                        EntryExpr::StructField(_) => self.problem(Problem::Message),
                    }
                }
            }
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
            Expr::Struct(_) => self.problem(Problem::Message),
        }
        self.depth -= 1;
    }

    /// Reports a broken rule. The rules are applied only at registration. An accepted expression that
    /// breaks one is compiled as far as possible, and whatever is missing becomes an error of its
    /// evaluation.
    fn problem(&mut self, problem: Problem) {
        if self.scope.trust == Trust::Unchecked && !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    fn is_bound(&self, name: &str) -> bool {
        name.starts_with('@') || self.bound.iter().any(|bound| bound == name)
    }

    fn read(&mut self, read: Read) {
        if !self.reads.contains(&read) {
            self.reads.push(read);
        }
    }

    fn select(&mut self, select: &mut SelectExpr) {
        let Some(names) = path(&select.operand.expr) else {
            return self.expression(&mut select.operand);
        };
        if self.is_bound(names[0]) {
            return;
        }
        let mut names: Vec<String> = names.into_iter().map(Into::into).collect();
        let tested = select.test.then(|| select.field.clone());
        if tested.is_none() {
            names.push(select.field.clone());
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.variable(&names, tested.as_deref());
    }

    /// Checks a variable and the fields that are read from it; `tested` is the field that `has` tests.
    fn variable(&mut self, names: &[&str], tested: Option<&str>) {
        let field = names.get(1).copied().or(tested);
        match names[0] {
            "input" => self.read(Read::Input),
            "run" => self.read(Read::Run),
            "execution" => {
                self.read(Read::Execution);
                self.field("execution", EXECUTION_FIELDS, field);
            }
            "error" => {
                if !self.scope.has_error {
                    self.problem(Problem::ErrorOutsideHandler);
                }
                self.read(Read::Error);
                let known = field.is_some_and(|field| ORIGIN_FIELDS.contains(&field));
                self.field("error", ERROR_FIELDS, field.filter(|_| !known));
            }
            "steps" => self.step(names, tested),
            "branches" => self.branch(names),
            "loops" => self.outer_item(names),
            "item" | "index" | "key" => self.item(names[0], None),
            unknown => self.problem(Problem::UnknownVariable(unknown.into())),
        }
    }

    fn field(&mut self, of: &'static str, fields: &[&str], field: Option<&str>) {
        if let Some(field) = field.filter(|field| !fields.contains(field)) {
            self.problem(Problem::UnknownField { of, field: field.into() });
        }
    }

    fn step(&mut self, names: &[&str], tested: Option<&str>) {
        if tested.is_some() && names.len() < 3 {
            return self.problem(Problem::HasOfStep);
        }
        let (Some(id), Some(part)) = (names.get(1), names.get(2)) else {
            return self.problem(Problem::StepsAsValue);
        };
        let Some(node) = self.scope.tree.find(id) else {
            return self.problem(Problem::UnknownStep((*id).into()));
        };
        match self.scope.tree.sight(self.scope.place, node) {
            Sight::Visible => {}
            Sight::Later => self.problem(Problem::ForwardReference((*id).into())),
            Sight::Hidden => self.problem(Problem::HiddenStep((*id).into())),
        }
        let read = StepRead { id: (*id).into(), path: self.scope.tree.own_path(node) };
        match *part {
            "output" => self.read(Read::Output(read)),
            "error" => {
                self.read(Read::StepError(read));
                let field = names.get(3).copied().or(tested);
                self.field("steps.<id>.error", ERROR_FIELDS, field);
            }
            _ => self.problem(Problem::StepsAsValue),
        }
    }

    fn branch(&mut self, names: &[&str]) {
        let ["branches", id, "output", ..] = names else {
            return self.problem(Problem::BranchesAsValue);
        };
        let tree = self.scope.tree;
        let Some(scope) = tree.earlier_branch(self.scope.place, id) else {
            return self.problem(Problem::NoSuchBranch((*id).into()));
        };
        if let Some(owner) = tree.owner(scope) {
            let path = tree.own_path(owner);
            self.read(Read::Branch(BranchRead { id: (*id).into(), path }));
        }
    }

    /// Reads a field of the item of a loop around the expression; by default that of the innermost one.
    fn item(&mut self, field: &str, of: Option<&str>) {
        let tree = self.scope.tree;
        let loops = tree.loops_around(self.scope.place);
        let depth = match of {
            Some(of) => loops.iter().position(|node| tree.id(*node).as_str() == of),
            None => loops.len().checked_sub(1),
        };
        let Some(depth) = depth else {
            return self.problem(match of {
                Some(of) => Problem::NoSuchLoop(of.into()),
                None => Problem::ItemOutsideLoop(field.into()),
            });
        };
        if let Some(field) = ItemField::ALL.into_iter().find(|own| own.name() == field) {
            self.read(Read::Item(ItemRead { of: of.map(Into::into), depth, field }));
        }
    }

    fn outer_item(&mut self, names: &[&str]) {
        match names {
            ["loops", of, field @ ("item" | "index" | "key"), ..] => self.item(field, Some(of)),
            _ => self.problem(Problem::LoopsAsValue),
        }
    }

    fn call(&mut self, node: &mut IdedExpr) {
        let Expr::Call(call) = &mut node.expr else {
            return;
        };
        let is_optional =
            call.target.as_ref().is_some_and(
                |target| matches!(&target.expr, Expr::Ident(name) if name == "optional"),
            ) && OPTIONALS.contains(&call.func_name.as_str());
        let is_known = match &call.target {
            Some(_) => is_optional || METHODS.contains(&call.func_name.as_str()),
            None => is_operator(&call.func_name) || FUNCTIONS.contains(&call.func_name.as_str()),
        };
        if !is_known {
            self.problem(Problem::UnknownFunction(call.func_name.clone()));
        }
        if let Some(target) = call.target.as_mut().filter(|_| !is_optional) {
            self.expression(target);
            if self.comprehensions > 0 && looks_at_all_of_it(&call.func_name) {
                charge(target);
            }
        }
        for argument in &mut call.args {
            self.expression(argument);
            if self.comprehensions > 0 && looks_at_all_of_it(&call.func_name) {
                charge(argument);
            }
        }
        // A comprehension that extends its own result pays for the new parts where they are made, so this
        // addition is not charged again.
        let grows = call.func_name == operators::ADD
            && !matches!(&call.args[..], [first, ..] if is_hidden(first));
        if grows
            && let [_, addend] = &mut call.args[..]
            && !matches!(&addend.expr, Expr::Literal(_))
        {
            *addend = global(ADDEND, vec![std::mem::take(addend)]);
        }
        if grows {
            charge(node);
        }
    }

    fn comprehension(&mut self, comprehension: &mut ComprehensionExpr) {
        self.expression(&mut comprehension.iter_range);
        let names = [Some(&comprehension.iter_var), comprehension.iter_var2.as_ref()];
        let names: Vec<String> = names.into_iter().flatten().cloned().collect();
        for name in &names {
            if VARIABLES.contains(&name.as_str()) {
                self.problem(Problem::HidesVariable(name.clone()));
            }
        }
        if self.comprehensions >= CEL_COMPREHENSIONS_MAX {
            self.problem(Problem::TooManyComprehensions);
            if self.scope.trust == Trust::Unchecked {
                return;
            }
        }
        let bound = self.bound.len();
        self.bound.extend(names);
        self.comprehensions += 1;
        let nodes = count(&comprehension.loop_step);
        self.expression(&mut comprehension.loop_cond);
        self.expression(&mut comprehension.loop_step);
        self.expression(&mut comprehension.result);
        self.comprehensions -= 1;
        self.bound.truncate(bound);

        let nodes = LiteralValue::Int(CelInt::from(i64::try_from(nodes).unwrap_or(i64::MAX)));
        let range = std::mem::take(&mut comprehension.iter_range);
        comprehension.iter_range = global(RANGE, vec![range, budget(), node(Expr::Literal(nodes))]);
    }
}

fn is_operator(function: &str) -> bool {
    function.starts_with(['_', '@', '!', '-'])
}

/// Whether the work of a call grows with the size of its arguments.
fn looks_at_all_of_it(function: &str) -> bool {
    use operators::{EQUALS, IN, NOT_EQUALS};
    let is_cheap = is_operator(function) || function == "size";
    [EQUALS, NOT_EQUALS, IN].contains(&function) || !is_cheap
}

/// Whether the expression is a variable that a macro introduced.
fn is_hidden(node: &IdedExpr) -> bool {
    matches!(&node.expr, Expr::Ident(name) if name.starts_with('@'))
}

/// Wraps an expression in a call that pays for its value.
fn charge(node: &mut IdedExpr) {
    if matches!(&node.expr, Expr::Literal(_)) || is_hidden(node) {
        return;
    }
    *node = global(CHARGE, vec![std::mem::take(node), budget()]);
}

fn budget() -> IdedExpr {
    node(Expr::Ident(BUDGET.into()))
}

fn global(function: &str, args: Vec<IdedExpr>) -> IdedExpr {
    node(Expr::Call(CallExpr { func_name: function.into(), target: None, args }))
}

fn node(expr: Expr) -> IdedExpr {
    IdedExpr { id: 0, expr }
}

/// The number of nodes of an expression.
fn count(node: &IdedExpr) -> usize {
    1 + match &node.expr {
        Expr::Unspecified | Expr::Literal(_) | Expr::Ident(_) | Expr::Struct(_) => 0,
        Expr::Select(select) => count(&select.operand),
        Expr::Call(call) => {
            call.target.iter().map(|target| count(target)).sum::<usize>()
                + call.args.iter().map(count).sum::<usize>()
        }
        Expr::List(list) => list.elements.iter().map(count).sum(),
        Expr::Map(map) => map
            .entries
            .iter()
            .map(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => count(&entry.key) + count(&entry.value),
                EntryExpr::StructField(field) => count(&field.value),
            })
            .sum(),
        // The rounds of an inner comprehension are paid for by its own range.
        Expr::Comprehension(inner) => count(&inner.iter_range),
    }
}
