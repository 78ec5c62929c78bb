//! What can be wrong with a catalog before any database is asked.

use std::collections::BTreeSet;

use super::{Catalog, CatalogError, Model, Parent, Ungrouped};
use crate::model::ids::{SyncGroup, is_group_kind};

impl Catalog {
    /// Every fault that can be seen without a database.
    pub(super) fn faults(&self) -> Vec<CatalogError> {
        let mut faults = Vec::new();
        if self.models.is_empty() {
            faults.push(fault("models", "the catalog names no model: add a [[models]] entry"));
        }
        let mut names = BTreeSet::new();
        for model in &self.models {
            if !names.insert(&model.name) {
                faults.push(fault(format!("models.{}", model.name), "this name is used twice: rename one"));
            }
            self.model_faults(model, &mut faults);
        }
        for (index, membership) in self.access.memberships.iter().enumerate() {
            kind_fault(&format!("access.memberships[{index}].kind"), &membership.kind, &mut faults);
        }
        faults
    }

    fn model_faults(&self, model: &Model, faults: &mut Vec<CatalogError>) {
        let at = |part: &str| format!("models.{}{part}", model.name);
        if !is_class_name(&model.name) {
            faults.push(fault(at(".name"), "a class is a letter, then letters, digits or `_`, and not `SyncAction`"));
        }
        for kind in model.groups.keys() {
            kind_fault(&at(".groups"), kind, faults);
        }
        let excluded: BTreeSet<&String> = model.exclude.iter().collect();
        if excluded.contains(&model.id) {
            faults.push(fault(at(".exclude"), format!("`{}` is the id: clients need it", model.id)));
        }
        let mut keys = BTreeSet::new();
        for key in &model.keys {
            if !keys.insert(key) {
                faults.push(fault(at(".keys"), format!("`{key}` is listed twice")));
            }
        }
        let mut wire_names = BTreeSet::new();
        for name in model.rename.values() {
            if name.is_empty() || name == "__class" {
                faults.push(fault(at(".rename"), format!("`{name}` can't be a field's name")));
            } else if !wire_names.insert(name) {
                faults.push(fault(at(".rename"), format!("two columns would be called `{name}`")));
            }
        }
        match &model.from {
            None if model.org.is_none() => {
                faults.push(fault(at(".org"), "no way to the tenant: name the `org` column, or `from`"));
            }
            None => {}
            Some(from) => self.parent_faults(model, from, faults),
        }
    }

    fn parent_faults(&self, model: &Model, from: &Parent, faults: &mut Vec<CatalogError>) {
        let at = format!("models.{}.from", model.name);
        if model.org.is_some() && !model.groups.is_empty() {
            faults.push(fault(at, "org and groups are both named here, so nothing is inherited: leave out `from`"));
            return;
        }
        if model.groups.is_empty() && model.ungrouped != Ungrouped::default() {
            let mend = "groups are inherited, so `ungrouped` belongs to the model that names the groups";
            faults.push(fault(format!("models.{}.ungrouped", model.name), mend));
        }
        let mut seen = vec![model.name.as_str()];
        let mut next = Some(from);
        while let Some(parent) = next {
            let Some((_, above)) = self.model(&parent.model) else {
                faults.push(fault(at, format!("there is no model `{}`", parent.model)));
                return;
            };
            if seen.contains(&above.name.as_str()) {
                let round = format!("{} -> {}", seen.join(" -> "), above.name);
                faults.push(fault(at, format!("{round} is a cycle: one of them needs an `org` column of its own")));
                return;
            }
            seen.push(&above.name);
            next = above.from.as_ref();
        }
    }
}

fn fault(place: impl Into<String>, fault: impl Into<String>) -> CatalogError {
    CatalogError { place: place.into(), fault: fault.into() }
}

fn kind_fault(place: &str, kind: &str, faults: &mut Vec<CatalogError>) {
    if !is_group_kind(kind) {
        faults.push(fault(place, format!("`{kind}` is no kind: a lower-case letter, then those, digits, `_` or `-`")));
    } else if kind == SyncGroup::ORG {
        faults.push(fault(place, "the kind `org` is every member's already: leave `groups` out for rows all may see"));
    }
}

fn is_class_name(name: &str) -> bool {
    name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && name != "SyncAction"
}
