//! A checkpoint written as a GGUF file: what is said of it there, held against what a reader will understand.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::super::Checkpoint;
use super::super::error::{Error, Result};
use super::architecture::Architecture;
use super::cursor::Cursor;
use super::described;
use super::metadata::Metadata;
use super::outgoing::Outgoing;
use super::tokenizer;
use super::writer::{Values, write_gguf};
use super::{Gguf, Placed};
use crate::checkpoint::config::Config;
use crate::checkpoint::files::{Files, Source};
use crate::checkpoint::form::BlockForm;
use crate::tensor::Storage;

impl Checkpoint {
    /// Writes the model as one GGUF file.
    ///
    /// Of a model that is a GGUF file everything is copied, but for tensors that were replaced and for the division into several
    /// files. Of another one matrices are written as they are stored, or as `storage`, and vectors in f32, which for Gemma's norms
    /// (1 + w) is a rounding.
    ///
    /// A tokenizer and its chat templates are written where a reader of the file gets the same ids from them. Else there are none in
    /// the file, and what comes back is the reason.
    ///
    /// # Errors
    ///
    /// [`Error::NotForGguf`] where GGUF cannot say all of the config or has no place for a tensor, and [`Error::Io`].
    pub fn write_gguf(&self, file: &Path, storage: Option<Storage>) -> Result<Option<String>> {
        let (values, mut tensors, without_tokenizer) = match self.gguf() {
            Some(gguf) => (gguf.copied_values(), self.copied(gguf)?, None),
            None => self.described(file)?,
        };
        if let Some(storage) = storage {
            tensors
                .iter_mut()
                .for_each(|tensor| tensor.store_as(storage));
        }
        let layouts: Vec<_> = tensors.iter().map(|tensor| tensor.layout.clone()).collect();
        write_gguf(file, &values, &layouts, |place| {
            Ok::<_, Error>(tensors[place].bytes())
        })?;
        Ok(without_tokenizer)
    }

    /// What is written of a model that is no GGUF file, and why there is no tokenizer in it where there is none.
    fn described(&self, file: &Path) -> Result<(Values, Vec<Outgoing>, Option<String>)> {
        let config = self.config();
        let Some(architecture) = Architecture::of_config(config) else {
            let family = &config.model_type;
            return Err(self.not_for_gguf(format!(
                "no architecture of GGUF's is known here for {family}"
            )));
        };
        let tensors = self.outgoing(architecture)?;
        let read = |values: &Values| self.read_back(file, architecture, values, &tensors);
        let mut values = described::values(architecture, config);
        let reason = match self.with_tokenizer(architecture, &values, read) {
            Ok(with_tokenizer) => {
                values = with_tokenizer;
                None
            }
            Err(reason) => {
                values.text(tokenizer::MODEL, "no_vocab");
                let eos = self.eos_token_ids().first().copied();
                for (key, id) in [("bos", config.bos_token_id), ("eos", eos)] {
                    if let Some(id) = id {
                        values.count(&format!("tokenizer.ggml.{key}_token_id"), id);
                    }
                }
                Some(reason)
            }
        };
        match difference(config, &read(&values)?.config) {
            Some(what) => Err(self.not_for_gguf(format!("{what} cannot be said there"))),
            None => Ok((values, tensors, reason)),
        }
    }

    /// The values with the tokenizer among them, from which `read` gets the same one, or why that cannot be.
    fn with_tokenizer(
        &self,
        architecture: &Architecture,
        values: &Values,
        read: impl Fn(&Values) -> Result<Self>,
    ) -> std::result::Result<Values, String> {
        let in_words = |e: Error| e.to_string();
        let own = self.tokenizer().map_err(in_words)?;
        let parts = own.parts().map_err(|e| e.to_string())?;
        let (templates, special) = self.chat_sources().map_err(in_words)?;
        let templates = templates.map(|(_, sources)| sources).unwrap_or_default();
        let source = tokenizer::Source {
            parts: &parts,
            special: &special,
            templates: &templates,
            bos: self.config().bos_token_id,
            eos: self.eos_token_ids(),
            rows: self.config().vocab_size,
            architecture: architecture.name,
        };
        let mut values = values.clone();
        tokenizer::write(&source, &mut values)?;
        let back = read(&values).map_err(in_words)?;
        let (read_templates, read_special) = back.chat_sources().map_err(in_words)?;
        let read_templates = read_templates
            .map(|(_, sources)| sources)
            .unwrap_or_default();
        // Of the tokens that have a name, templates use some.
        let used = |name: &&String| templates.values().any(|source| source.contains(&**name));
        let names = special.keys().chain(read_special.keys()).filter(used);
        let differs = |name: &&String| special.get(*name) != read_special.get(*name);
        let what = if read_templates != templates {
            Some("its chat templates".into())
        } else if let Some(name) = names.into_iter().find(differs) {
            Some(format!(
                "a {name} of its chat template that is not the model's"
            ))
        } else {
            own.difference(&parts, &back.tokenizer().map_err(in_words)?)
        };
        match what {
            Some(what) => Err(format!("GGUF has no place for {what}")),
            None => Ok(values),
        }
    }

    /// What a reader of the file will see, but for the tensors.
    fn read_back(
        &self,
        file: &Path,
        architecture: &'static Architecture,
        values: &Values,
        tensors: &[Outgoing],
    ) -> Result<Self> {
        let written: Bytes = values.written().to_vec().into();
        let place = |tensor: &Outgoing| Placed {
            name: tensor.layout.name.clone(),
            tensor: tensor.from[0].clone(),
            file: file.into(),
        };
        let gguf = Gguf {
            metadata: Metadata::read(file, &mut Cursor::new(file, &written), values.len())?,
            architecture,
            tensors: tensors.iter().map(place).collect(),
        };
        let json = gguf.file("config.json")?.unwrap_or_default();
        let mut config = Config::parse(file, &json)?;
        config.as_stored_in_gguf();
        let gguf = Arc::new(gguf);
        Ok(Self {
            files: Files::Of(gguf.clone()),
            gguf: Some(gguf),
            config,
            ..self.clone()
        })
    }

    pub(super) fn not_for_gguf(&self, reason: String) -> Error {
        Error::NotForGguf {
            model: self.name().into(),
            reason,
        }
    }
}

/// What a GGUF file's config says otherwise than the config it was made from, in a word.
fn difference(config: &Config, written: &Config) -> Option<String> {
    let mut config = config.clone();
    config.as_stored_in_gguf();
    let same = |differs: bool, what: &str| differs.then(|| what.to_owned());
    let decoder = config.decoder != written.decoder;
    let sizes = |config: &Config| {
        [
            config.vocab_size,
            config.hidden_size,
            config.intermediate_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.max_position_embeddings,
        ]
    };
    same(sizes(&config) != sizes(written), "a size of the model")
        .or_else(|| same(decoder, "the norm or the cap before the head"))
        .or_else(|| {
            let blocks = config.blocks.iter().zip(&written.blocks).enumerate();
            let differs = |(layer, (block, written)): (usize, (&BlockForm, &BlockForm))| {
                let (a, b) = (&block.attention, &written.attention);
                let parts = [
                    ("the window", a.window != b.window),
                    ("the rotation", a.rope != b.rope),
                    ("the scaling of scores", a.scaling != b.scaling),
                    ("the attention", a != b),
                    (
                        "the MLP",
                        (&block.inner, &block.outer, block.sum)
                            != (&written.inner, &written.outer, written.sum),
                    ),
                ];
                let (part, _) = parts.into_iter().find(|(_, differs)| *differs)?;
                Some(format!("{part} of layer {layer}"))
            };
            blocks.into_iter().find_map(differs)
        })
}
