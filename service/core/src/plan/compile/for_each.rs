//! The items of a `for_each`.

use super::{Compiler, IssueCode, Scope, StepKind};
use crate::definition::ForEach;
use crate::plan::ForEachPlan;

impl Compiler<'_> {
    /// None if the expression of the items cannot be compiled.
    pub(super) fn for_each(
        &mut self,
        path: &str,
        each: &ForEach,
        scope: &Scope<'_>,
    ) -> Option<StepKind> {
        let path = format!("{path}.for_each");
        if each.block.steps.is_empty() {
            self.no_steps(&format!("{path}.steps"));
        }
        let item_key = each.item_key.as_ref().map(|key| match fields(key) {
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
}

/// The names after `item`; none if the text has another form.
fn fields(key: &str) -> Option<Vec<String>> {
    let mut names = key.trim().split('.');
    let is_name = |name: &str| {
        name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
            && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
    };
    let is_of_item = names.next() == Some("item");
    let fields: Vec<String> = names.map(Into::into).collect();
    (is_of_item && fields.iter().all(|name| is_name(name))).then_some(fields)
}
