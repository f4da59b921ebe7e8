//! The work that one evaluation may do. CEL programs always end, but nested comprehensions and growing
//! values could take practically unlimited time and memory. Therefore every copy of a value and every round
//! of a comprehension is paid for from a budget.

use std::any::Any;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use cel::common::types::{
    CelInt, CelList, CelMap, CelMapKey, CelOptional, CelString, DYN_TYPE, Type,
};
use cel::common::value::{CowVal, StaticVal, Val};
use cel::{Env, ExecutionError};

/// How many values the expressions of one template or condition may visit or copy.
const WORK_MAX: usize = 1_000_000;
/// How many bytes of text count as one value.
const TEXT_BYTES: usize = 64;

/// The names of the budget and of its functions. No expression can spell them, because of the `@`.
pub(super) const BUDGET: &str = "@budget";
pub(super) const CHARGE: &str = "@charge";
pub(super) const RANGE: &str = "@range";
pub(super) const ADDEND: &str = "@addend";

/// CEL's standard functions and those that check the budget.
pub(super) static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut environment = Env::stdlib();
    let dynamic = || DYN_TYPE.to_owned();
    environment
        .add_overload(CHARGE, "charge", vec![dynamic(), dynamic()], charge)
        .and_then(|()| environment.add_overload(ADDEND, "addend", vec![dynamic()], addend))
        .and_then(|()| {
            environment.add_overload(RANGE, "range", vec![dynamic(), dynamic(), dynamic()], range)
        })
        .expect("the names are taken by nothing else");
    Arc::new(environment)
});

/// The budget that is left, in values.
#[derive(Debug)]
pub(super) struct Budget(AtomicUsize);

impl Budget {
    pub(super) fn new() -> Self {
        Self(AtomicUsize::new(WORK_MAX))
    }

    /// Deducts the cost, and returns whether the budget covered it.
    fn pay(&self, cost: usize) -> bool {
        // An evaluation runs on one thread; the atomic is needed only for `Sync`.
        let left = self.0.load(Ordering::Relaxed);
        self.0.store(left.saturating_sub(cost), Ordering::Relaxed);
        cost <= left
    }
}

impl Val for Budget {
    fn get_type(&self) -> &Type {
        &DYN_TYPE
    }

    fn cel_type() -> &'static Type {
        &DYN_TYPE
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
        Box::new(Self(AtomicUsize::new(self.0.load(Ordering::Relaxed))))
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl StaticVal for Budget {}

/// `@charge(value, budget)` returns the value after paying for it.
fn charge<'b, 'v>(mut args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    pay(&args, weight(&*args[0]))?;
    Ok(args.swap_remove(0))
}

/// `@addend(value)` returns the value, but fails for a map: the interpreter would append a map's keys to a
/// list, in the order of their hashes.
fn addend<'b, 'v>(mut args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    if args[0].downcast_ref::<CelMap>().is_some() {
        return Err(ExecutionError::function_error(ADDEND, "a map cannot be added"));
    }
    Ok(args.swap_remove(0))
}

/// `@range(value, budget, nodes)` pays for a comprehension over the value, whose body has the given number
/// of nodes, and returns what the comprehension iterates over. For a map these are its keys in order, so
/// that the result does not depend on hashes.
fn range<'b, 'v>(mut args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let nodes = args[2].downcast_ref::<CelInt>().map_or(1, |nodes| *nodes.inner());
    let nodes = usize::try_from(nodes).unwrap_or(usize::MAX);
    let items = args[0].as_sizer().map_or(0, |sizer| *sizer.size().inner());
    let rounds = usize::try_from(items).unwrap_or(0).saturating_mul(nodes);
    pay(&args, weight(&*args[0]).saturating_add(rounds))?;
    let range = args.swap_remove(0);
    let Some(map) = range.downcast_ref::<CelMap>() else {
        return Ok(range);
    };
    let mut keys: Vec<&CelMapKey<'v>> = map.inner().keys().collect();
    keys.sort();
    let keys: Vec<Box<dyn Val + 'v>> = keys
        .into_iter()
        .map(|key| match key.clone() {
            CelMapKey::Bool(key) => Box::new(key) as Box<dyn Val + 'v>,
            CelMapKey::Int(key) => Box::new(key),
            CelMapKey::UInt(key) => Box::new(key),
            CelMapKey::String(key) => Box::new(key),
        })
        .collect();
    Ok(CowVal::owned(CelList::from(keys)))
}

fn pay(args: &[CowVal<'_, '_>], cost: usize) -> Result<(), ExecutionError> {
    let paid = args[1].downcast_ref::<Budget>().is_some_and(|budget| budget.pay(cost));
    if paid {
        Ok(())
    } else {
        let message = "the expression takes too much work for its input";
        Err(ExecutionError::function_error(CHARGE, message))
    }
}

fn weight(value: &dyn Val) -> usize {
    if let Some(text) = value.downcast_ref::<CelString>() {
        1 + text.inner().len() / TEXT_BYTES
    } else if let Some(list) = value.downcast_ref::<CelList>() {
        list.inner().iter().fold(1, |sum, item| sum + weight(&**item))
    } else if let Some(map) = value.downcast_ref::<CelMap>() {
        map.inner().iter().fold(1, |sum, (key, value)| sum + weight(key.inner()) + weight(&**value))
    } else if let Some(optional) = value.downcast_ref::<CelOptional>() {
        1 + optional.option().map_or(0, weight)
    } else {
        1
    }
}
