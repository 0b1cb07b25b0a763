//! The guide: what it shows is taken by the API server, and every page is found.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use kube::api::{Api, PostParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use lapstrake_e2e::{examples, repository_root, run};
use serde_json::Value;

const DRY: PostParams = PostParams { dry_run: true, field_manager: None };

/// The pages of the guide and their texts.
fn pages() -> Result<Vec<(PathBuf, String)>> {
    let mut pages = Vec::new();
    for entry in fs::read_dir(repository_root().join("docs/guide"))? {
        let path = entry?.path();
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        pages.push((path, text));
    }
    pages.sort();
    Ok(pages)
}

/// The YAML blocks of a page that are whole ImageBuilds.
fn builds(text: &str) -> Vec<&str> {
    let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.filter(|block| block.contains("kind: ImageBuild")).collect()
}

#[test]
fn every_build_of_the_guide_is_taken() {
    run("guide", async |test| {
        let kind = GroupVersionKind::gvk("lapstrake.dev", "v1alpha1", "ImageBuild");
        let resource = ApiResource::from_gvk_with_plural(&kind, "imagebuilds");
        let api: Api<DynamicObject> = Api::namespaced_with(test.client.clone(), &test.namespace, &resource);
        let mut taken = 0;
        for (path, text) in pages()? {
            for block in builds(&text) {
                let place = || format!("{}:\n{block}", path.display());
                for document in block.split("\n---\n").filter(|text| text.contains("kind: ImageBuild")) {
                    let object: Value = serde_saphyr::from_str(document).with_context(place)?;
                    api.create(&DRY, &serde_json::from_value(object)?).await.with_context(place)?;
                    taken += 1;
                }
            }
        }
        assert!(taken > 2, "the guide shows whole builds");
        Ok(())
    });
}

#[test]
fn every_page_is_in_the_index_and_every_example_that_it_names_is_there() -> Result<()> {
    let pages = pages()?;
    let index = repository_root().join("docs/guide/README.md");
    let index = fs::read_to_string(index)?;
    let known = examples()?;
    for (path, text) in &pages {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        ensure!(name == "README.md" || index.contains(&format!("]({name})")), "{name} is not in the index");
        for rest in text.split("(../../examples/").skip(1) {
            let example = rest.split('/').next().unwrap_or_default().to_owned();
            ensure!(known.contains(&example), "{name} names the example {example}, which does not exist");
        }
    }
    for place in ["README.md", "docs/user-guide.md"] {
        let text = fs::read_to_string(repository_root().join(place))?;
        ensure!(text.contains("guide/README.md"), "{place} does not lead to the guide");
    }
    Ok(())
}
