// OpenSSL's objects as owned pointers, and its errors as text. Only for the sources of net/.
#pragma once

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <memory>
#include <string>
#include <string_view>

#include "base/status.h"
#include "net/certificates.h"

namespace tidemark::net {

template <auto kFree>
struct OpensslFree {
  template <typename T>
  void operator()(T* object) const {
    kFree(object);
  }
};
using BioPtr = std::unique_ptr<BIO, OpensslFree<BIO_free_all>>;
using KeyPtr = std::unique_ptr<EVP_PKEY, OpensslFree<EVP_PKEY_free>>;
using X509Ptr = std::unique_ptr<X509, OpensslFree<X509_free>>;
using X509ReqPtr = std::unique_ptr<X509_REQ, OpensslFree<X509_REQ_free>>;
using SslPtr = std::unique_ptr<SSL, OpensslFree<SSL_free>>;
using SessionPtr = std::unique_ptr<SSL_SESSION, OpensslFree<SSL_SESSION_free>>;

// The reason of the newest error in this thread's queue, which is emptied. "unknown error" when there is none.
std::string take_openssl_reason();

// From PEM text; `object` names it in the error. No password is ever asked for. `library`: where it will be used.
Result<X509Ptr> read_certificate(const std::string& pem, const std::string& object, OSSL_LIB_CTX* library = nullptr);
Result<KeyPtr> read_key(const std::string& pem, const std::string& object, OSSL_LIB_CTX* library = nullptr);

// What verification says when no certificate shown is the pinned one. Of the values that make OpenSSL send the alert
// "unknown ca" this is the one that cannot occur otherwise: the list of certificates is limited to a few.
inline constexpr int kNotThePinnedAuthority = X509_V_ERR_CERT_CHAIN_TOO_LONG;

CertificateInfo describe(const X509& certificate);

}  // namespace tidemark::net
