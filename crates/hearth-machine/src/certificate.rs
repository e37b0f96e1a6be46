//! Certificates of authorities, as texts in PEM (RFC 7468). What is in them is for the programs that trust them; here it is made sure that
//! they are whole, and that nothing else is taken for one.

/// How each begins and ends.
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// The most bytes of all certificates of a machine.
pub const CERTIFICATES_MAX: usize = 1 << 20;

/// Says why a text holds no certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// There is none.
    #[error(
        "there is no PEM certificate in it (-----BEGIN CERTIFICATE-----); of DER one is made by `openssl x509 -inform der -in FILE`"
    )]
    None,
    /// Something that nobody wants to hand out.
    #[error("there is a private key in it, which no machine is to have: give the certificates alone")]
    PrivateKey,
    /// One is damaged.
    #[error("certificate {0} in it is cut off or damaged")]
    Damaged(usize),
    /// They are too many.
    #[error("its certificates are more than 1 MiB")]
    TooLong,
}

/// Returns the certificates of a text, each by itself and without what is said about them.
///
/// # Errors
/// [`CertificateError`].
pub fn certificates(text: &str) -> Result<Vec<String>, CertificateError> {
    if text.contains("PRIVATE KEY-----") {
        return Err(CertificateError::PrivateKey);
    }
    let mut all = Vec::new();
    for (number, part) in text.split(BEGIN).skip(1).enumerate() {
        let damaged = CertificateError::Damaged(number + 1);
        let (body, _) = part.split_once(END).ok_or(damaged)?;
        let lines: Vec<&str> = body.split_whitespace().collect();
        let digits = lines.concat();
        if !is_whole(digits.as_bytes()) {
            return Err(damaged);
        }
        all.push(format!("{BEGIN}\n{}\n{END}\n", lines.join("\n")));
    }
    match all.iter().map(String::len).sum::<usize>() {
        0 => Err(CertificateError::None),
        CERTIFICATES_MAX.. => Err(CertificateError::TooLong),
        _ => Ok(all),
    }
}

/// Tells whether this is the base64 of a DER sequence of two bytes of length, as every certificate is, and all of it.
fn is_whole(digits: &[u8]) -> bool {
    let padding = digits.iter().rev().take_while(|&&digit| digit == b'=').count();
    let values: Option<Vec<u32>> = digits[..digits.len() - padding]
        .iter()
        .map(|&digit| value(digit))
        .collect();
    let Some(values) =
        values.filter(|values| values.len() >= 8 && digits.len().is_multiple_of(4) && padding < 3)
    else {
        return false;
    };
    let head = values[..8]
        .iter()
        .fold(0_u64, |bits, &value| bits << 6 | u64::from(value))
        .to_be_bytes();
    let length = usize::from(u16::from_be_bytes([head[4], head[5]]));
    head[2..4] == [0x30, 0x82] && digits.len() / 4 * 3 - padding == length + 4
}

fn value(digit: u8) -> Option<u32> {
    Some(u32::from(match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The base64 of a sequence of 260 zeroes.
    fn digits() -> String {
        format!("MIIBBA{}", "A".repeat(346))
    }

    fn pem(digits: &str) -> String {
        let lines: Vec<&str> = (0..digits.len())
            .step_by(64)
            .map(|at| &digits[at..digits.len().min(at + 64)])
            .collect();
        format!("{BEGIN}\n{}\n{END}\n", lines.join("\n"))
    }

    #[test]
    fn certificates_are_found_among_what_is_said_about_them() {
        let one = pem(&digits());
        let text = format!(
            "# The authority\r\n{}\n subject=/CN=x\n{one}",
            one.replace('\n', "\r\n")
        );
        assert_eq!(certificates(&text), Ok(vec![one.clone(), one]));
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        let whole = digits();
        for (text, expected) in [
            (String::new(), CertificateError::None),
            ("0\u{82}".to_owned(), CertificateError::None),
            (
                format!("{}-----BEGIN EC PRIVATE KEY-----", pem(&whole)),
                CertificateError::PrivateKey,
            ),
            (format!("{BEGIN}\n{whole}"), CertificateError::Damaged(1)),
            (pem(&whole) + &pem(&whole[..340]), CertificateError::Damaged(2)),
            (pem(&whole.replace("MII", "MIH")), CertificateError::Damaged(1)),
            (pem(&whole.replacen("AA", "A-", 1)), CertificateError::Damaged(1)),
            (pem("===="), CertificateError::Damaged(1)),
            (pem(&whole).repeat(2600), CertificateError::TooLong),
        ] {
            let refused = certificates(&text).err();
            assert_eq!(refused, Some(expected));
        }
    }
}
