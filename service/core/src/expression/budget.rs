//! What one evaluation may cost. CEL programs always end, but nested comprehensions and growing
//! values can take all time and memory; so every copy and every round of a comprehension is paid for.

use std::any::Any;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use cel::common::types::{
    CelInt, CelList, CelMap, CelMapKey, CelOptional, CelString, DYN_TYPE, Type,
};
use cel::common::value::{CowVal, StaticVal, Val};
use cel::{Env, ExecutionError};

/// Values visited or copied by the expressions of one template or condition.
const WORK_MAX: usize = 1_000_000;
/// Bytes of text that count as one value.
const TEXT_BYTES: usize = 64;

/// Names that no source can spell.
pub(super) const BUDGET: &str = "@budget";
pub(super) const CHARGE: &str = "@charge";
pub(super) const RANGE: &str = "@range";
pub(super) const ADDEND: &str = "@addend";

/// The standard functions and those that check the budget.
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

/// What is left.
#[derive(Debug)]
pub(super) struct Budget(AtomicUsize);

impl Budget {
    pub(super) fn new() -> Self {
        Self(AtomicUsize::new(WORK_MAX))
    }

    /// Whether the cost could be paid.
    fn pay(&self, cost: usize) -> bool {
        // One evaluation is one thread; the atomic only satisfies `Sync`.
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

/// `@charge(value, budget)` is the value, paid for.
fn charge<'b, 'v>(mut args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    pay(&args, weight(&*args[0]))?;
    Ok(args.swap_remove(0))
}

/// `@addend(value)` is the value unless it is a map: the interpreter would add a map's keys to a list,
/// in the order of their hashes.
fn addend<'b, 'v>(mut args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    if args[0].downcast_ref::<CelMap>().is_some() {
        return Err(ExecutionError::function_error(ADDEND, "a map cannot be added"));
    }
    Ok(args.swap_remove(0))
}

/// `@range(value, budget, nodes)` is what a comprehension with a body of so many nodes goes through:
/// a map's keys in order, so that the result does not depend on hashes.
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
        Err(ExecutionError::function_error(CHARGE, "takes too much work for its input"))
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
