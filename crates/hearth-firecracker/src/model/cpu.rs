//! Flags of the processor, one by one. x86-64 only: other architectures have other registers.

use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What is changed of what the guest sees of its processor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuConfiguration {
    /// Capabilities of KVM that must be there (`"171"`), or need not be (`"!171"`).
    #[serde(default)]
    pub kvm_capabilities: Vec<String>,
    /// Results of CPUID.
    #[serde(default)]
    pub cpuid_modifiers: Vec<CpuidModifier>,
    /// Model-specific registers.
    #[serde(default)]
    pub msr_modifiers: Vec<MsrModifier>,
}

/// One leaf of CPUID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidModifier {
    /// The leaf.
    #[serde(serialize_with = "write_hexadecimal", deserialize_with = "read_hexadecimal")]
    pub leaf: u32,
    /// The leaf within it.
    #[serde(serialize_with = "write_hexadecimal", deserialize_with = "read_hexadecimal")]
    pub subleaf: u32,
    /// KVM's flags of the leaf (`struct kvm_cpuid_entry2`): 1 when the subleaf counts.
    pub flags: u32,
    /// What is changed in it.
    pub modifiers: Vec<CpuidRegisterModifier>,
}

/// One register of a leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidRegisterModifier {
    /// Which.
    pub register: CpuidRegister,
    /// What of it.
    pub bitmap: Bitmap,
}

/// Where CPUID puts its results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "they are registers")]
pub enum CpuidRegister {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// One model-specific register.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsrModifier {
    /// Its number.
    #[serde(serialize_with = "write_hexadecimal", deserialize_with = "read_hexadecimal")]
    pub addr: u32,
    /// What of it.
    pub bitmap: Bitmap,
}

/// Bits that are set, cleared or left: `0b1x0`, the lowest last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Bitmap(String);

/// Says that a text is no bitmap.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a bitmap is 0b and 1 to 64 of 0, 1 and x: {0:?}")]
pub struct InvalidBitmap(String);

impl TryFrom<String> for Bitmap {
    type Error = InvalidBitmap;

    fn try_from(text: String) -> Result<Self, InvalidBitmap> {
        let bits = text.strip_prefix("0b").unwrap_or_default();
        let count = bits.bytes().filter(|bit| *bit != b'_').count();
        if (1..=64).contains(&count) && bits.bytes().all(|bit| b"01x_".contains(&bit)) {
            Ok(Self(text))
        } else {
            Err(InvalidBitmap(text))
        }
    }
}

impl FromStr for Bitmap {
    type Err = InvalidBitmap;

    fn from_str(text: &str) -> Result<Self, InvalidBitmap> {
        text.to_owned().try_into()
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
fn write_hexadecimal<S: Serializer>(number: &u32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{number:#x}"))
}

fn read_hexadecimal<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let text = String::deserialize(deserializer)?;
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(serde::de::Error::custom)
}
