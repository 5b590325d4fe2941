// What keeps the roles apart: a machine's certificate has extended key usage clientAuth and no DNS name, a server's has
// serverAuth and no machine's URI, and neither may sign (basicConstraints CA:FALSE, keyUsage digitalSignature only).
#include "net/certificates.h"

#include <arpa/inet.h>
#include <openssl/bn.h>
#include <openssl/ec.h>
#include <openssl/pem.h>

#include <algorithm>
#include <cstdint>
#include <ctime>
#include <limits>
#include <utility>

#include "base/hex.h"
#include "base/random.h"
#include "net/openssl.h"

namespace tidemark::net {
namespace {

constexpr std::int64_t kMicros = 1'000'000;
constexpr std::int64_t kSkewSeconds = 300;  // clocks of machines differ: certificates begin a little in the past
constexpr std::string_view kMachineUri = "tidemark:machine:";
constexpr std::string_view kClientUri = "tidemark:client:";
constexpr long kX509Version3 = 2;

using BignumPtr = std::unique_ptr<BIGNUM, OpensslFree<BN_free>>;
using ExtensionPtr = std::unique_ptr<X509_EXTENSION, OpensslFree<X509_EXTENSION_free>>;
using NamesPtr = std::unique_ptr<GENERAL_NAMES, OpensslFree<GENERAL_NAMES_free>>;
using GeneralNamePtr = std::unique_ptr<GENERAL_NAME, OpensslFree<GENERAL_NAME_free>>;

std::unexpected<Error> openssl_failed(const std::string& object, std::string_view doing) {
  return fail(Code::internal, object, "cannot " + std::string(doing) + ": " + take_openssl_reason());
}

// PEM_read_* would ask on the terminal for the password of an encrypted key.
int no_password(char*, int, int, void*) { return 0; }

BioPtr memory_bio(const std::string& text) {
  return BioPtr(BIO_new_mem_buf(text.data(),
                                static_cast<int>(std::min<std::size_t>(text.size(), std::numeric_limits<int>::max()))));
}

std::string text_of(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  return {data, static_cast<std::size_t>(size)};
}

Result<std::string> to_pem(X509* certificate) {
  BioPtr bio(BIO_new(BIO_s_mem()));
  if (!bio || PEM_write_bio_X509(bio.get(), certificate) != 1) return openssl_failed("certificate", "write it as PEM");
  return text_of(bio.get());
}

Result<std::string> to_pem(EVP_PKEY* key) {
  BioPtr bio(BIO_new(BIO_s_mem()));
  if (!bio || PEM_write_bio_PKCS8PrivateKey(bio.get(), key, nullptr, nullptr, 0, nullptr, nullptr) != 1) {
    return openssl_failed("private key", "write it as PEM");
  }
  return text_of(bio.get());
}

Result<KeyPtr> make_key() {
  KeyPtr key(EVP_EC_gen("P-256"));
  if (!key) return openssl_failed("private key", "make it");
  return key;
}

bool is_p256(const EVP_PKEY* key) {
  char group[32] = {};
  return EVP_PKEY_is_a(key, "EC") == 1 &&
         EVP_PKEY_get_group_name(key, static_cast<char*>(group), sizeof group, nullptr) == 1 &&
         std::string_view(static_cast<const char*>(group)) == "prime256v1";
}

// For people to read: nothing is decided by it, so what does not fit X.509's 64 characters is cut off.
bool set_name(X509_NAME* name, const std::string& common_name) {
  const std::string text = common_name.empty() ? "unnamed" : common_name.substr(0, 64);
  return X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>(text.data()),
                                    static_cast<int>(text.size()), -1, 0) == 1;
}

bool add_extension(X509* certificate, X509* issuer, int nid, const char* value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  const ExtensionPtr extension(X509V3_EXT_conf_nid(nullptr, &context, nid, value));
  return extension && X509_add_ext(certificate, extension.get(), -1) == 1;
}

bool set_serial(X509* certificate) {
  std::array<std::byte, 16> bytes;
  secure_random(bytes);
  const BignumPtr number(BN_bin2bn(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), nullptr));
  return number && BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(certificate)) != nullptr;
}

// A certificate with subject, serial, validity and key, without extensions and signature.
Result<X509Ptr> begin(const std::string& common_name, EVP_PKEY* key, WallMicros now_us, std::chrono::seconds lifetime) {
  X509Ptr certificate(X509_new());
  const std::int64_t now_s = now_us / kMicros;
  if (!certificate || X509_set_version(certificate.get(), kX509Version3) != 1 || !set_serial(certificate.get()) ||
      !set_name(X509_get_subject_name(certificate.get()), common_name) ||
      ASN1_TIME_set(X509_getm_notBefore(certificate.get()), now_s - kSkewSeconds) == nullptr ||
      ASN1_TIME_set(X509_getm_notAfter(certificate.get()), now_s + lifetime.count()) == nullptr ||
      X509_set_pubkey(certificate.get(), key) != 1) {
    return openssl_failed(common_name, "make its certificate");
  }
  return certificate;
}

struct Authority {
  X509Ptr certificate;
  KeyPtr key;
};

Result<Authority> open_authority(const KeyAndCertificate& pem) {
  // One by one: a return from the middle of a braced initialiser would leak what is made already.
  Authority authority;
  authority.certificate = TIDEMARK_TRY(read_certificate(pem.certificate_pem, "the authority's certificate"));
  authority.key = TIDEMARK_TRY(read_key(pem.key_pem, "the authority's key"));
  if (X509_check_private_key(authority.certificate.get(), authority.key.get()) != 1) {
    ERR_clear_error();
    return fail(Code::invalid_argument, "the authority's key", "does not belong to its certificate",
                "restore both from the same backup");
  }
  if (X509_check_ca(authority.certificate.get()) != 1) {
    return fail(Code::invalid_argument, "the authority's certificate", "is not one that may sign others");
  }
  return authority;
}

// Nothing that the authority signs outlives it: it would not be accepted anyway, and its date would mislead.
Status sign(const Authority& authority, X509* certificate, const char* purpose) {
  const ASN1_TIME* last = X509_get0_notAfter(authority.certificate.get());
  const bool outlives = ASN1_TIME_compare(X509_get0_notAfter(certificate), last) > 0;
  if ((outlives && X509_set1_notAfter(certificate, last) != 1) ||
      X509_set_issuer_name(certificate, X509_get_subject_name(authority.certificate.get())) != 1 ||
      !add_extension(certificate, authority.certificate.get(), NID_basic_constraints, "critical,CA:FALSE") ||
      !add_extension(certificate, authority.certificate.get(), NID_key_usage, "critical,digitalSignature") ||
      !add_extension(certificate, authority.certificate.get(), NID_ext_key_usage, purpose) ||
      !add_extension(certificate, authority.certificate.get(), NID_authority_key_identifier, "keyid:always") ||
      X509_sign(certificate, authority.key.get(), EVP_sha256()) == 0) {
    return openssl_failed("certificate", "sign it");
  }
  return {};
}

bool is_dns_name(std::string_view name) {
  if (name.empty() || name.size() > 253) return false;
  return std::ranges::all_of(name, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.' ||
           c == '_';
  });
}

// An IP address or a DNS name; nothing else may stand in a server's certificate.
Result<GeneralNamePtr> general_name(const std::string& name) {
  std::array<unsigned char, 16> address;
  int address_size = 0;
  if (inet_pton(AF_INET, name.c_str(), address.data()) == 1) address_size = 4;
  if (inet_pton(AF_INET6, name.c_str(), address.data()) == 1) address_size = 16;
  if (address_size == 0 && !is_dns_name(name)) {
    return fail(Code::invalid_argument, name, "is neither a DNS name nor an IP address", "give it without a port");
  }
  GeneralNamePtr general(GENERAL_NAME_new());
  ASN1_STRING* value = address_size != 0 ? ASN1_OCTET_STRING_new() : ASN1_IA5STRING_new();
  if (!general || value == nullptr) {
    ASN1_STRING_free(value);
    return openssl_failed(name, "put it into a certificate");
  }
  const void* bytes = address_size != 0 ? static_cast<const void*>(address.data()) : name.data();
  const int size = address_size != 0 ? address_size : static_cast<int>(name.size());
  const int set = ASN1_STRING_set(value, bytes, size);
  GENERAL_NAME_set0_value(general.get(), address_size != 0 ? GEN_IPADD : GEN_DNS, value);
  if (set != 1) return openssl_failed(name, "put it into a certificate");
  return general;
}

std::int64_t micros_of(const ASN1_TIME* time) {
  std::tm parts{};
  if (ASN1_TIME_to_tm(time, &parts) != 1) return 0;
  return static_cast<std::int64_t>(timegm(&parts)) * kMicros;
}

// What follows `scheme` in the one URI of a certificate that has it; empty when there is none or more than one.
std::string named_by(const X509& certificate, std::string_view scheme) {
  const NamesPtr names(
      static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(&certificate, NID_subject_alt_name, nullptr, nullptr)));
  std::string name;
  int found = 0;
  for (int i = 0; names && i < sk_GENERAL_NAME_num(names.get()); ++i) {
    int type = 0;
    const void* value = GENERAL_NAME_get0_value(sk_GENERAL_NAME_value(names.get(), i), &type);
    if (type != GEN_URI) continue;
    const auto* text = static_cast<const ASN1_STRING*>(value);
    const std::string_view uri(reinterpret_cast<const char*>(ASN1_STRING_get0_data(text)),
                               static_cast<std::size_t>(ASN1_STRING_length(text)));
    if (!uri.starts_with(scheme)) continue;
    ++found;
    name = uri.substr(scheme.size());
  }
  return found == 1 ? name : std::string();
}

Result<std::string> request_for(EVP_PKEY* key, const std::string& common_name) {
  const X509ReqPtr request(X509_REQ_new());
  BioPtr bio(BIO_new(BIO_s_mem()));
  if (!request || !bio || X509_REQ_set_version(request.get(), 0) != 1 ||
      !set_name(X509_REQ_get_subject_name(request.get()), common_name) ||
      X509_REQ_set_pubkey(request.get(), key) != 1 || X509_REQ_sign(request.get(), key, EVP_sha256()) == 0 ||
      PEM_write_bio_X509_REQ(bio.get(), request.get()) != 1) {
    return openssl_failed("certificate request", "make it");
  }
  return text_of(bio.get());
}

}  // namespace

std::string take_openssl_reason() {
  const unsigned long error = ERR_peek_last_error();
  ERR_clear_error();
  const char* reason = error == 0 ? nullptr : ERR_reason_error_string(error);
  return reason == nullptr ? "unknown error" : reason;
}

Result<X509Ptr> read_certificate(const std::string& pem, const std::string& object, OSSL_LIB_CTX* library) {
  const BioPtr bio = memory_bio(pem);
  X509* into = X509_new_ex(library, nullptr);
  const bool read = bio && into != nullptr && PEM_read_bio_X509(bio.get(), &into, no_password, nullptr) != nullptr;
  X509Ptr certificate(into);  // null when reading came as far as to free it
  if (!read) return fail(Code::invalid_argument, object, "is not a certificate in PEM form: " + take_openssl_reason());
  return certificate;
}

Result<KeyPtr> read_key(const std::string& pem, const std::string& object, OSSL_LIB_CTX* library) {
  const BioPtr bio = memory_bio(pem);
  KeyPtr key(bio ? PEM_read_bio_PrivateKey_ex(bio.get(), nullptr, no_password, nullptr, library, nullptr) : nullptr);
  if (!key) return fail(Code::invalid_argument, object, "is not a private key in PEM form: " + take_openssl_reason());
  return key;
}

CertificateInfo describe(const X509& certificate) {
  CertificateInfo info;
  info.machine = MachineId::parse(named_by(certificate, kMachineUri)).value_or(MachineId());
  info.client = named_by(certificate, kClientUri);
  const BignumPtr number(ASN1_INTEGER_to_BN(X509_get0_serialNumber(&certificate), nullptr));
  if (number) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(std::max(16, BN_num_bytes(number.get()))));
    BN_bn2binpad(number.get(), reinterpret_cast<unsigned char*>(bytes.data()), static_cast<int>(bytes.size()));
    info.serial = to_hex(bytes);
  }
  info.not_before_us = micros_of(X509_get0_notBefore(&certificate));
  info.not_after_us = micros_of(X509_get0_notAfter(&certificate));
  unsigned int size = 0;
  X509_digest(&certificate, EVP_sha256(), reinterpret_cast<unsigned char*>(info.sha256.data()), &size);
  return info;
}

Result<KeyAndCertificate> make_authority(const std::string& name, WallMicros now_us) {
  const KeyPtr key = TIDEMARK_TRY(make_key());
  const X509Ptr certificate = TIDEMARK_TRY(begin(name, key.get(), now_us, kCaLifetime));
  if (X509_set_issuer_name(certificate.get(), X509_get_subject_name(certificate.get())) != 1 ||
      !add_extension(certificate.get(), certificate.get(), NID_basic_constraints, "critical,CA:TRUE,pathlen:0") ||
      !add_extension(certificate.get(), certificate.get(), NID_key_usage, "critical,keyCertSign,cRLSign") ||
      !add_extension(certificate.get(), certificate.get(), NID_subject_key_identifier, "hash") ||
      X509_sign(certificate.get(), key.get(), EVP_sha256()) == 0) {
    return openssl_failed(name, "make the authority's certificate");
  }
  std::string key_pem = TIDEMARK_TRY(to_pem(key.get()));
  std::string certificate_pem = TIDEMARK_TRY(to_pem(certificate.get()));
  return KeyAndCertificate{std::move(key_pem), std::move(certificate_pem)};
}

Result<KeyAndCertificate> issue_server(const KeyAndCertificate& authority_pem, const std::vector<std::string>& names,
                                       WallMicros now_us, std::chrono::seconds lifetime) {
  const Authority authority = TIDEMARK_TRY(open_authority(authority_pem));
  const KeyPtr key = TIDEMARK_TRY(make_key());
  const X509Ptr certificate = TIDEMARK_TRY(begin(kServerName, key.get(), now_us, lifetime));
  const NamesPtr alternatives(GENERAL_NAMES_new());
  std::vector<std::string> all = {kServerName};
  all.insert(all.end(), names.begin(), names.end());
  for (const std::string& name : all) {
    GeneralNamePtr general = TIDEMARK_TRY(general_name(name));
    if (sk_GENERAL_NAME_push(alternatives.get(), general.get()) <= 0)
      return openssl_failed(name, "put it into a certificate");
    static_cast<void>(general.release());
  }
  if (X509_add1_ext_i2d(certificate.get(), NID_subject_alt_name, alternatives.get(), 0, X509V3_ADD_DEFAULT) != 1) {
    return openssl_failed(kServerName, "put its names into a certificate");
  }
  TIDEMARK_TRY(sign(authority, certificate.get(), "serverAuth"));
  std::string key_pem = TIDEMARK_TRY(to_pem(key.get()));
  std::string certificate_pem = TIDEMARK_TRY(to_pem(certificate.get()));
  return KeyAndCertificate{std::move(key_pem), std::move(certificate_pem)};
}

Result<std::string> issue_machine(const KeyAndCertificate& authority_pem, const std::string& csr_pem,
                                  const MachineId& machine, WallMicros now_us, std::chrono::seconds lifetime) {
  const BioPtr bio = memory_bio(csr_pem);
  const X509ReqPtr request(bio ? PEM_read_bio_X509_REQ(bio.get(), nullptr, no_password, nullptr) : nullptr);
  if (!request) {
    return fail(Code::invalid_argument, "certificate request", "is not one in PEM form: " + take_openssl_reason());
  }
  EVP_PKEY* key = X509_REQ_get0_pubkey(request.get());
  if (key == nullptr || !is_p256(key)) {
    ERR_clear_error();
    return fail(Code::invalid_argument, "certificate request", "its key is not a P-256 key");
  }
  if (X509_REQ_verify(request.get(), key) != 1) {
    ERR_clear_error();
    return fail(Code::invalid_argument, "certificate request", "its signature is wrong");
  }
  if (machine.is_nil()) return fail(Code::invalid_argument, "certificate request", "is for no machine");
  const Authority authority = TIDEMARK_TRY(open_authority(authority_pem));
  const X509Ptr certificate = TIDEMARK_TRY(begin(machine.to_string(), key, now_us, lifetime));
  const std::string uri = "URI:" + std::string(kMachineUri) + machine.to_string();
  if (!add_extension(certificate.get(), authority.certificate.get(), NID_subject_alt_name, uri.c_str())) {
    return openssl_failed(machine.to_string(), "put its name into a certificate");
  }
  TIDEMARK_TRY(sign(authority, certificate.get(), "clientAuth"));
  return to_pem(certificate.get());
}

Result<KeyAndCertificate> issue_client(const KeyAndCertificate& authority_pem, const std::string& name,
                                       WallMicros now_us, std::chrono::seconds lifetime) {
  if (!is_dns_name(name))
    return fail(Code::invalid_argument, name, "is no name for a client", "letters, digits, and . _ - make one");
  const Authority authority = TIDEMARK_TRY(open_authority(authority_pem));
  const KeyPtr key = TIDEMARK_TRY(make_key());
  const X509Ptr certificate = TIDEMARK_TRY(begin(name, key.get(), now_us, lifetime));
  const std::string uri = "URI:" + std::string(kClientUri) + name;
  if (!add_extension(certificate.get(), authority.certificate.get(), NID_subject_alt_name, uri.c_str())) {
    return openssl_failed(name, "put its name into a certificate");
  }
  TIDEMARK_TRY(sign(authority, certificate.get(), "clientAuth"));
  std::string key_pem = TIDEMARK_TRY(to_pem(key.get()));
  std::string certificate_pem = TIDEMARK_TRY(to_pem(certificate.get()));
  return KeyAndCertificate{std::move(key_pem), std::move(certificate_pem)};
}

Result<KeyAndRequest> make_request(const std::string& common_name) {
  const KeyPtr key = TIDEMARK_TRY(make_key());
  std::string key_pem = TIDEMARK_TRY(to_pem(key.get()));
  std::string csr_pem = TIDEMARK_TRY(request_for(key.get(), common_name));
  return KeyAndRequest{std::move(key_pem), std::move(csr_pem)};
}

Result<std::string> make_request_for_key(const std::string& key_pem, const std::string& common_name) {
  const KeyPtr key = TIDEMARK_TRY(read_key(key_pem, "the machine's key"));
  return request_for(key.get(), common_name);
}

Result<CertificateInfo> describe_certificate(const std::string& certificate_pem) {
  const X509Ptr certificate = TIDEMARK_TRY(read_certificate(certificate_pem, "certificate"));
  return describe(*certificate);
}

}  // namespace tidemark::net
