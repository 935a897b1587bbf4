//! Linear maps on a device, with what patches change in them.

use std::ops::Range;

use super::DevicePass;
use crate::cuda::{DeviceRows, Into, Memory, Result, Weights};
use crate::model::Linear;
use crate::model::overlay::TensorOverlay;
use crate::model::pass::{among, changes_of};
use crate::tensor::{Element, Matrix};

/// A map on its way: W and b, and its outputs; the sums apart where a patch still changes them.
struct Mapped<'m, E: Element> {
    map: &'m Linear,
    w: Weights,
    bias: Option<Memory>,
    sums: Option<DeviceRows<E::Acc>>,
    out: DeviceRows<E>,
}

impl<E: Element> Mapped<'_, E> {
    fn product(&self) -> (&Weights, Into<'_, E>) {
        let into = match (&self.sums, &self.bias) {
            (Some(sums), _) => Into::Sums(sums),
            (None, Some(bias)) => Into::Biased(&self.out, (bias, self.map.form.rounded_first)),
            (None, None) => Into::Rounded(&self.out),
        };
        (&self.w, into)
    }
}

impl<E: Element> DevicePass<'_, '_, '_, '_, E> {
    /// W x + b for the rows of the batch, or of `tokens` of it, all products in one launch.
    pub(super) fn linear_rows<const N: usize>(
        &mut self,
        maps: [&Linear; N],
        x: &DeviceRows<E>,
        tokens: Option<&[usize]>,
    ) -> [DeviceRows<E>; N] {
        let absent = maps.map(|map| DeviceRows::absent(x.rows(), map.weight.rows()));
        self.attempt(absent, |pass| {
            let mut mapped = Vec::new();
            for map in maps {
                mapped.push(pass.mapped(map, x.rows())?);
            }
            let products: Vec<_> = mapped.iter().map(Mapped::product).collect();
            pass.device().multiply(x, &products)?;
            for mapped in &mapped {
                pass.finish(mapped, x, tokens)?;
            }
            let mut out = mapped.into_iter().map(|mapped| mapped.out);
            Ok(maps.map(|map| match out.next() {
                Some(out) => out,
                None => DeviceRows::absent(x.rows(), map.weight.rows()),
            }))
        })
    }

    /// A map before its product is computed.
    fn mapped<'m>(&self, map: &'m Linear, rows: usize) -> Result<Mapped<'m, E>> {
        let w = self.on.weights::<E>(&map.weight)?;
        let bias = map.bias.as_ref().map(|bias| {
            let numbers = || map.bias::<E>().unwrap_or_default();
            self.on.vector::<E>(bias, false, numbers)
        });
        let bias = bias.transpose()?;
        let changed = ["weight", "bias"]
            .iter()
            .any(|tensor| !changes_of(&self.changes, map.name(), tensor).is_empty());
        let sums = changed
            .then(|| DeviceRows::new(self.device(), rows, w.rows))
            .transpose()?;
        Ok(Mapped {
            out: DeviceRows::new(self.device(), rows, w.rows)?,
            map,
            w,
            bias,
            sums,
        })
    }

    /// What patches make of W x and of the bias, in the compute type.
    fn finish(
        &mut self,
        mapped: &Mapped<'_, E>,
        x: &DeviceRows<E>,
        tokens: Option<&[usize]>,
    ) -> Result<()> {
        let Some(sums) = &mapped.sums else {
            return Ok(());
        };
        let map = mapped.map;
        for (rows, change) in changes_of(&self.changes, map.name(), "weight") {
            let rows = among(tokens, &rows);
            self.change(change, &x.view(rows.clone()), &sums.view(rows))?;
        }
        // The stored bias, or none, for the rows that no other has.
        let device = self.device();
        let mut next = 0;
        let finish = |rows: Range<usize>, bias: Option<&Memory>| {
            let (sums, out) = (sums.view(rows.clone()), mapped.out.view(rows));
            match bias {
                Some(bias) => device.add_bias(&sums, bias, map.form.rounded_first, &out),
                None => device.round(&sums, &out),
            }
        };
        for (rows, change) in changes_of(&self.changes, map.name(), "bias") {
            let TensorOverlay::Vector(bias) = change else {
                continue;
            };
            let rows = among(tokens, &rows);
            finish(next..rows.start, mapped.bias.as_ref())?;
            next = rows.end;
            finish(rows, Some(&Memory::of(device, bias)?))?;
        }
        finish(next..x.rows(), mapped.bias.as_ref())
    }

    /// What a patch makes of W x.
    fn change(
        &mut self,
        change: &TensorOverlay<E>,
        x: &DeviceRows<E>,
        sums: &DeviceRows<E::Acc>,
    ) -> Result<()> {
        let device = self.device().clone();
        match change {
            TensorOverlay::Vector(_) => Ok(()),
            TensorOverlay::Replaced(w) => {
                let w = self.lent(w)?;
                device.multiply(x, &[(&w, Into::Sums(sums))])
            }
            TensorOverlay::LowRank { u, v } => {
                let (u, v) = (self.lent(u)?, self.lent(v)?);
                let vx = DeviceRows::<E::Acc>::new(&device, x.rows(), v.rows)?;
                let delta = DeviceRows::new(&device, x.rows(), u.rows)?;
                let x = self.widened(x)?;
                device.multiply(&x, &[(&v, Into::<E::Acc>::Rounded(&vx))])?;
                device.multiply(&vx, &[(&u, Into::<E::Acc>::Rounded(&delta))])?;
                device.of_pairs("add", [sums, &delta, sums])
            }
        }
    }

    /// A matrix of a patch, which lives as long as the sequences of the pass.
    fn lent<F: Element>(&mut self, matrix: &Matrix<F>) -> Result<Weights> {
        let cache = self.sequences.first_mut();
        let cache = cache.and_then(|sequence| sequence.cache.device_mut());
        let memory = match cache {
            Some(cache) => cache.lent(matrix)?,
            None => Memory::of(self.on.device(), matrix.as_slice())?,
        };
        Ok(Weights {
            memory,
            storage: F::DTYPE,
            rows: matrix.rows(),
            cols: matrix.cols(),
        })
    }

    /// x in the type of sums.
    fn widened(&self, x: &DeviceRows<E>) -> Result<DeviceRows<E::Acc>> {
        if E::DTYPE == E::Acc::DTYPE {
            return Ok(x.retyped());
        }
        let out = DeviceRows::new(self.device(), x.rows(), x.cols())?;
        self.device().widen(x, &out)?;
        Ok(out)
    }
}
