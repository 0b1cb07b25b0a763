//! Pictures of a graph: text, JSON, DOT, SVG.

use std::collections::HashMap;
use std::fmt::Write as _;

use lapstrake_llb::{Graph, Vertex, VertexDigest, pb};
use serde_json::{Value, json};

/// How a graph is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// A list for people.
    Text,
    /// A list of objects.
    Json,
    /// As clients of BuildKit are told (`frontend.convertllb`).
    Buildkit,
    /// For Graphviz.
    Dot,
    /// A drawing.
    Svg,
}

/// Names longer than this are cut in drawings, characters.
const NAME_CHARS: usize = 60;
const BOX: (usize, usize) = (460, 36);
const GAP: (usize, usize) = (40, 46);

/// The graph in a format.
pub(crate) fn show(graph: &Graph, definition: &pb::Definition, format: Format) -> String {
    match format {
        Format::Buildkit => {
            // What was encoded a moment ago is well formed.
            format!("{:#}\n", lapstrake_llb::protojson::definition(definition).unwrap_or_default())
        }
        Format::Text => text(graph),
        Format::Json => {
            let all: Vec<Value> = graph.vertices().iter().map(|vertex| json(vertex)).collect();
            let target = graph.target().map(|target| target.vertex.to_string());
            format!("{:#}\n", json!({"vertices": all, "target": target}))
        }
        Format::Dot => dot(graph),
        Format::Svg => svg(graph),
    }
}

/// What an operation is, in a word.
fn kind(op: &pb::op::Op) -> &'static str {
    match op {
        pb::op::Op::Source(_) => "source",
        pb::op::Op::Exec(_) => "exec",
        pb::op::Op::File(_) => "file",
        pb::op::Op::Merge(_) => "merge",
        pb::op::Op::Diff(_) => "diff",
        pb::op::Op::Passthrough(_) => "passthrough",
        _ => "build",
    }
}

fn places(graph: &Graph) -> HashMap<VertexDigest, usize> {
    graph.vertices().iter().enumerate().map(|(at, vertex)| (vertex.digest, at)).collect()
}

fn text(graph: &Graph) -> String {
    let (places, mut out) = (places(graph), String::new());
    for (at, vertex) in graph.vertices().iter().enumerate() {
        let _ = writeln!(out, "#{at} {} {}", kind(&vertex.op), vertex.name());
        let _ = writeln!(out, "   {}", vertex.digest);
        let inputs: Vec<String> = vertex
            .inputs
            .iter()
            .map(|input| format!("#{}:{}", places.get(&input.vertex).unwrap_or(&0), input.index))
            .collect();
        if !inputs.is_empty() {
            let _ = writeln!(out, "   inputs {}", inputs.join(" "));
        }
        for line in details(&vertex.op) {
            let _ = writeln!(out, "   {line}");
        }
        if let Some(place) = vertex.locations.first() {
            let _ = writeln!(out, "   line {}", place.first_line);
        }
    }
    if let Some(target) = graph.target() {
        let _ = writeln!(out, "target #{}:{}", places.get(&target.vertex).unwrap_or(&0), target.index);
    }
    out
}

fn details(op: &pb::op::Op) -> Vec<String> {
    match op {
        pb::op::Op::Source(source) => {
            let attrs: std::collections::BTreeMap<_, _> = source.attrs.iter().collect();
            let attrs = attrs.into_iter().map(|(name, value)| format!("{name}={value}"));
            std::iter::once(source.identifier.clone()).chain(attrs).collect()
        }
        pb::op::Op::Exec(exec) => {
            let meta = exec.meta.clone().unwrap_or_default();
            let mut out = vec![format!("args {:?}", meta.args), format!("env {:?}", meta.env)];
            out.push(format!("cwd {} user {:?}", meta.cwd, meta.user));
            let mounts = exec.mounts.iter().map(|mount| {
                let kind = pb::MountType::try_from(mount.mount_type).unwrap_or_default().as_str_name();
                format!("mount {} {}", kind.to_lowercase(), mount.dest)
            });
            out.extend(mounts);
            out
        }
        pb::op::Op::File(file) => file.actions.iter().map(action).collect(),
        _ => Vec::new(),
    }
}

fn action(action: &pb::FileAction) -> String {
    match &action.action {
        Some(pb::file_action::Action::Copy(copy)) => {
            format!("copy {:?} of input {} to {:?}", copy.src, action.secondary_input, copy.dest)
        }
        Some(pb::file_action::Action::Mkfile(make)) => {
            format!("file {:?} of {} bytes, mode {:o}", make.path, make.data.len(), make.mode)
        }
        Some(pb::file_action::Action::Mkdir(make)) => {
            format!("directory {:?}, mode {:o}", make.path, make.mode)
        }
        Some(pb::file_action::Action::Rm(rm)) => format!("remove {:?}", rm.path),
        _ => "another action".to_owned(),
    }
}

fn json(vertex: &Vertex) -> Value {
    let inputs: Vec<Value> = vertex
        .inputs
        .iter()
        .map(|input| json!({"vertex": input.vertex.to_string(), "index": input.index}))
        .collect();
    let lines: Vec<Value> =
        vertex.locations.iter().map(|place| json!([place.first_line, place.last_line])).collect();
    let platform = vertex.platform.as_ref().map(|p| {
        let variant = if p.variant.is_empty() { String::new() } else { format!("/{}", p.variant) };
        format!("{}/{}{variant}", p.os, p.architecture)
    });
    json!({
        "digest": vertex.digest.to_string(), "name": vertex.name(), "kind": kind(&vertex.op), "inputs": inputs,
        "platform": platform, "lines": lines, "details": details(&vertex.op),
    })
}

fn short(vertex: &Vertex) -> String {
    let name = vertex.name();
    match name.char_indices().nth(NAME_CHARS) {
        Some((at, _)) => format!("{}…", &name[..at]),
        None => name,
    }
}

fn dot(graph: &Graph) -> String {
    let places = places(graph);
    let mut out = String::from("digraph {\n  rankdir=TB;\n  node [shape=box, fontname=\"sans-serif\"];\n");
    for (at, vertex) in graph.vertices().iter().enumerate() {
        let target = graph.target().is_some_and(|target| target.vertex == vertex.digest);
        let bold = if target { ", style=bold" } else { "" };
        let label = short(vertex).replace('\\', "\\\\").replace('"', "\\\"").replace('\n', " ");
        let _ = writeln!(out, "  v{at} [label=\"{label}\"{bold}];");
        for input in &vertex.inputs {
            if let Some(from) = places.get(&input.vertex) {
                let _ = writeln!(out, "  v{from} -> v{at};");
            }
        }
    }
    out.push_str("}\n");
    out
}

/// Boxes in rows: each below all that it needs.
fn svg(graph: &Graph) -> String {
    let places = places(graph);
    let mut spots: Vec<(usize, usize)> = Vec::new();
    let mut widths: Vec<usize> = Vec::new();
    for vertex in graph.vertices() {
        let above = vertex.inputs.iter().filter_map(|input| spots.get(*places.get(&input.vertex)?));
        let row = above.map(|(row, _)| row + 1).max().unwrap_or(0);
        widths.resize(widths.len().max(row + 1), 0);
        let column = widths.get(row).copied().unwrap_or(0);
        if let Some(width) = widths.get_mut(row) {
            *width += 1;
        }
        spots.push((row, column));
    }
    let columns = widths.iter().copied().max().unwrap_or(0);
    let (width, height) = (columns * (BOX.0 + GAP.0) + GAP.0, widths.len() * (BOX.1 + GAP.1) + GAP.1);
    let corner =
        |(row, column): (usize, usize)| (GAP.0 + column * (BOX.0 + GAP.0), GAP.1 + row * (BOX.1 + GAP.1));
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n"
    );
    for (vertex, spot) in graph.vertices().iter().zip(&spots) {
        let (x, y) = corner(*spot);
        for input in &vertex.inputs {
            let Some(from) = places.get(&input.vertex).and_then(|at| spots.get(*at)) else { continue };
            let (from_x, from_y) = corner(*from);
            let _ = writeln!(
                out,
                "<line x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{y}\" stroke=\"#888\"/>",
                from_x + BOX.0 / 2,
                from_y + BOX.1,
                x + BOX.0 / 2
            );
        }
    }
    for (vertex, spot) in graph.vertices().iter().zip(&spots) {
        let (x, y) = corner(*spot);
        let fill = match kind(&vertex.op) {
            "source" => "#dbeafe",
            "exec" => "#fef3c7",
            _ => "#dcfce7",
        };
        let name = short(vertex).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let name: String = name.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let (wide, high) = BOX;
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{wide}\" height=\"{high}\" rx=\"4\" fill=\"{fill}\" stroke=\"#444\"/>\
             <text x=\"{}\" y=\"{}\">{name}</text>",
            x + 8,
            y + 22
        );
    }
    out.push_str("</svg>\n");
    out
}
