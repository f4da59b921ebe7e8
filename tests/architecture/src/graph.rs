//! Which crate may use which: the dependencies between the crates of the workspace, and all direct and indirect
//! dependencies of core.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

/// The crates that make up the product, each with the other listed crates that it may use in its normal and
/// build dependencies. Members that are not listed live under `tests/` or `examples/`: they may use any crate,
/// and no listed crate may use them.
const ARROWS: &[(&str, &[&str])] = &[
    (
        "recoup-server",
        &[
            "recoup-api",
            "recoup-engine",
            "recoup-store",
            "recoup-core",
            "recoup-proto",
            "recoup-sdk",
        ],
    ),
    ("recoup-api", &["recoup-engine", "recoup-store", "recoup-core", "recoup-proto"]),
    ("recoup-engine", &["recoup-store", "recoup-core"]),
    ("recoup-store", &["recoup-core"]),
    ("recoup-sdk", &["recoup-proto"]),
    ("recoup-proto", &[]),
    ("recoup-core", &[]),
];

const CORE: &str = "recoup-core";

/// The crates that core's manifest may name as dependencies.
const CORE_USES: &[&str] = &["bytes", "cel", "serde", "serde_json", "thiserror", "uuid"];

/// Further crates that core's tests may use.
const CORE_TESTS_USE: &[&str] = &["divan", "insta", "proptest", "serde_json"];

/// The crates that core may not depend on, directly or indirectly: async runtimes, I/O, clocks, randomness. A
/// trailing `*` matches any rest of the name. `getrandom` is not listed: Cargo unites features over the
/// workspace, and other crates ask for random ids from `uuid`, which core uses only for the type.
const NEVER_BEHIND_CORE: &[&str] = &[
    "async-*",
    "chrono",
    "futures-executor",
    "hyper",
    "mio",
    "rand",
    "reqwest",
    "rusqlite",
    "sqlx",
    "sqlx-*",
    "time",
    "tokio",
    "tokio-*",
    "tonic",
    "tonic-*",
];

/// The part of `cargo metadata --format-version 1` that the checks read.
#[derive(Debug, Deserialize)]
pub struct Metadata {
    packages: Vec<Package>,
    workspace_members: BTreeSet<String>,
    workspace_root: String,
    resolve: Resolve,
}

#[derive(Debug, Deserialize)]
struct Package {
    id: String,
    name: String,
    manifest_path: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// None for a normal dependency, otherwise `dev` or `build`.
    kind: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Edge>,
}

#[derive(Debug, Deserialize)]
struct Edge {
    pkg: String,
    dep_kinds: Vec<EdgeKind>,
}

#[derive(Debug, Deserialize)]
struct EdgeKind {
    kind: Option<String>,
}

impl Metadata {
    /// Parses the output of `cargo metadata --format-version 1`, including its resolve graph.
    pub fn parse(json: &str) -> Result<Metadata, serde_json::Error> {
        serde_json::from_str(json)
    }

    fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| self.workspace_members.contains(&package.id))
    }
}

impl Dependency {
    fn is_dev(&self) -> bool {
        self.kind.as_deref() == Some("dev")
    }
}

/// Dependencies between workspace crates that the design does not allow, and members that it does not list.
pub fn wrong_arrows(metadata: &Metadata) -> Vec<String> {
    let members: BTreeSet<&str> = metadata.members().map(|package| package.name.as_str()).collect();
    let mut findings = Vec::new();
    for (name, _) in ARROWS {
        if !members.contains(name) {
            findings.push(format!("{name} is not a member of the workspace"));
        }
    }
    for package in metadata.members() {
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == package.name) else {
            let folder = package.manifest_path.strip_prefix(&metadata.workspace_root);
            let folder = folder.unwrap_or(&package.manifest_path).trim_start_matches('/');
            if !folder.starts_with("tests/") && !folder.starts_with("examples/") {
                findings.push(format!("{} has no place among the arrows", package.name));
            }
            continue;
        };
        for dependency in package.dependencies.iter().filter(|dependency| !dependency.is_dev()) {
            let name = dependency.name.as_str();
            if members.contains(name) && !allowed.contains(&name) {
                findings.push(format!("{} may not use {name}", package.name));
            }
        }
    }
    findings
}

/// Dependencies in core's manifest that are not on its list.
pub fn unexpected_core_uses(metadata: &Metadata) -> Vec<String> {
    let Some(core) = metadata.members().find(|package| package.name == CORE) else {
        return vec![format!("{CORE} is not a member of the workspace")];
    };
    let mut findings = Vec::new();
    for dependency in &core.dependencies {
        let name = dependency.name.as_str();
        let allowed =
            CORE_USES.contains(&name) || dependency.is_dev() && CORE_TESTS_USE.contains(&name);
        if !allowed {
            let kind = dependency.kind.as_deref().unwrap_or("normal");
            findings.push(format!("{CORE} may not have the {kind} dependency {name}"));
        }
    }
    findings
}

/// Normal dependencies of core, direct or indirect, that it may not have. Each comes with the path that leads
/// to it.
pub fn forbidden_behind_core(metadata: &Metadata) -> Vec<String> {
    let names: BTreeMap<&str, &str> = metadata
        .packages
        .iter()
        .map(|package| (package.id.as_str(), package.name.as_str()))
        .collect();
    let nodes: BTreeMap<&str, &Node> =
        metadata.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
    let Some(core) = metadata.members().find(|package| package.name == CORE) else {
        return vec![format!("{CORE} is not a member of the workspace")];
    };

    let mut findings = Vec::new();
    let mut seen = BTreeSet::from([core.id.as_str()]);
    let mut open = vec![(core.id.as_str(), CORE.to_owned())];
    while let Some((id, path)) = open.pop() {
        let Some(node) = nodes.get(id) else {
            findings.push(format!("{path} is not in the resolve graph"));
            continue;
        };
        for edge in &node.deps {
            let normal = edge.dep_kinds.iter().any(|kind| kind.kind.is_none());
            if !normal || !seen.insert(&edge.pkg) {
                continue;
            }
            let name = names.get(edge.pkg.as_str()).copied().unwrap_or(&edge.pkg);
            let path = format!("{path} > {name}");
            if NEVER_BEHIND_CORE.iter().any(|pattern| matches(pattern, name)) {
                findings.push(path.clone());
            }
            open.push((&edge.pkg, path));
        }
    }
    findings
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A workspace that keeps every rule. `extra` adds dependencies as (of, on, kind), between members or with
    /// other crates.
    fn metadata(extra: &[(&str, &str, Option<&str>)]) -> Metadata {
        let mut edges: Vec<(&str, &str, Option<&str>)> = Vec::new();
        for (name, allowed) in ARROWS {
            edges.extend(allowed.iter().map(|on| (*name, *on, None)));
        }
        edges.extend(CORE_USES.iter().map(|on| (CORE, *on, None)));
        edges.push((CORE, "proptest", Some("dev")));
        edges.push(("proptest", "rand", None));
        edges.push(("thiserror", "syn", None));
        edges.push(("recoup-simulation", "recoup-engine", None));
        edges.extend(extra);

        let names: BTreeSet<&str> = edges.iter().flat_map(|(of, on, _)| [*of, *on]).collect();
        let dependencies = |name: &str| -> Vec<(&str, Option<&str>)> {
            edges
                .iter()
                .filter(|(of, _, _)| *of == name)
                .map(|(_, on, kind)| (*on, *kind))
                .collect()
        };
        let folder = |name: &str| match name {
            "recoup-simulation" => "tests/simulation",
            _ => "service/any",
        };
        let packages: Vec<Value> = names
            .iter()
            .map(|name| {
                let uses: Vec<Value> = dependencies(name)
                    .iter()
                    .map(|(on, kind)| json!({"name": on, "kind": kind}))
                    .collect();
                json!({
                    "id": format!("id of {name}"),
                    "name": name,
                    "manifest_path": format!("/checkout/{}/Cargo.toml", folder(name)),
                    "dependencies": uses,
                })
            })
            .collect();
        let nodes: Vec<Value> = names
            .iter()
            .map(|name| {
                let deps: Vec<Value> = dependencies(name)
                    .iter()
                    .map(|(on, kind)| {
                        json!({"pkg": format!("id of {on}"), "dep_kinds": [{"kind": kind}]})
                    })
                    .collect();
                json!({"id": format!("id of {name}"), "deps": deps})
            })
            .collect();
        let members: Vec<String> = names
            .iter()
            .filter(|name| name.starts_with("recoup-"))
            .map(|name| format!("id of {name}"))
            .collect();
        let all = json!({
            "packages": packages,
            "workspace_members": members,
            "workspace_root": "/checkout",
            "resolve": {"nodes": nodes},
        });
        Metadata::parse(&all.to_string()).expect("the example has the form of cargo's output")
    }

    #[test]
    fn an_allowed_dependency_graph_has_no_findings() {
        let good = metadata(&[]);
        assert_eq!(wrong_arrows(&good), [""; 0]);
        assert_eq!(unexpected_core_uses(&good), [""; 0]);
        assert_eq!(forbidden_behind_core(&good), [""; 0]);
    }

    #[test]
    fn every_unlisted_dependency_between_crates_is_found() {
        for (of, allowed) in ARROWS {
            for (on, _) in ARROWS.iter().filter(|(on, _)| on != of && !allowed.contains(on)) {
                for kind in [None, Some("build")] {
                    let findings = wrong_arrows(&metadata(&[(of, on, kind)]));
                    assert_eq!(findings, [format!("{of} may not use {on}")]);
                }
                assert_eq!(wrong_arrows(&metadata(&[(of, on, Some("dev"))])), [""; 0]);
            }
        }
    }

    #[test]
    fn a_product_crate_that_uses_a_test_crate_is_found() {
        let findings = wrong_arrows(&metadata(&[("recoup-server", "recoup-simulation", None)]));
        assert_eq!(findings, ["recoup-server may not use recoup-simulation"]);
    }

    #[test]
    fn a_crate_missing_from_the_arrows_is_found() {
        let findings = wrong_arrows(&metadata(&[("recoup-misc", "bytes", None)]));
        assert_eq!(findings, ["recoup-misc has no place among the arrows"]);
    }

    #[test]
    fn a_missing_workspace_member_is_found() {
        let mut metadata = metadata(&[]);
        metadata.workspace_members.remove("id of recoup-core");
        assert_eq!(wrong_arrows(&metadata), ["recoup-core is not a member of the workspace"]);
        assert_eq!(unexpected_core_uses(&metadata).len(), 1);
        assert_eq!(forbidden_behind_core(&metadata).len(), 1);
    }

    #[test]
    fn a_new_dependency_of_core_is_found() {
        for kind in [None, Some("dev"), Some("build")] {
            let findings = unexpected_core_uses(&metadata(&[(CORE, "regex", kind)]));
            let kind = kind.unwrap_or("normal");
            assert_eq!(findings, [format!("recoup-core may not have the {kind} dependency regex")]);
        }
        let findings = unexpected_core_uses(&metadata(&[(CORE, "insta", None)]));
        assert_eq!(findings, ["recoup-core may not have the normal dependency insta"]);
    }

    #[test]
    fn a_forbidden_dependency_of_core_is_found_at_any_depth() {
        for (pattern, name) in [
            ("tokio", "tokio"),
            ("sqlx", "sqlx"),
            ("tonic", "tonic"),
            ("tokio-*", "tokio-postgres"),
            ("rusqlite", "rusqlite"),
            ("rand", "rand"),
            ("chrono", "chrono"),
            ("reqwest", "reqwest"),
            ("futures-executor", "futures-executor"),
            ("async-*", "async-trait"),
        ] {
            assert!(NEVER_BEHIND_CORE.contains(&pattern));
            let findings = forbidden_behind_core(&metadata(&[("syn", name, None)]));
            assert_eq!(findings, [format!("recoup-core > thiserror > syn > {name}")]);
            assert_eq!(
                forbidden_behind_core(&metadata(&[("syn", name, Some("dev"))])),
                [""; 0],
                "the tests of other crates are not part of core"
            );
        }
    }
}
