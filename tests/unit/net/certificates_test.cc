#include "net/certificates.h"

#include <gmock/gmock.h>

#include <openssl/pem.h>

#include "net/openssl.h"
#include "tests/unit/net/fixture.h"

namespace tidemark::net {
namespace {

using namespace test;
using testing::HasSubstr;

constexpr WallMicros kNow = 1'800'000'000'000'000;
constexpr WallMicros kFiveMinutes = 300'000'000;

std::string machine_certificate(const KeyAndCertificate& authority, std::chrono::seconds lifetime = kMachineLifetime) {
  return issue_machine(authority, make_request("web1")->csr_pem, some_machine(3), kNow, lifetime).value();
}

TEST(Certificates, StateWhoseTheyAreAndForHowLong) {
  const auto authority = make_authority("an authority", kNow).value();
  const auto machine = describe_certificate(machine_certificate(authority)).value();
  EXPECT_EQ(machine.machine, some_machine(3));
  EXPECT_EQ(machine.not_before_us, kNow - kFiveMinutes) << "clocks differ";
  EXPECT_EQ(machine.not_after_us, kNow + std::chrono::microseconds(kMachineLifetime).count());
  EXPECT_EQ(machine.serial.size(), 32u);
  const auto server =
      describe_certificate(issue_server(authority, {"host.example", "192.0.2.7", "::1"}, kNow)->certificate_pem);
  EXPECT_TRUE(server->machine.is_nil());
  EXPECT_TRUE(describe_certificate(authority.certificate_pem)->machine.is_nil());
  EXPECT_NE(describe_certificate(machine_certificate(authority))->serial, machine.serial);
}

TEST(Certificates, NeverOutliveTheirAuthority) {
  const auto authority = make_authority("an authority", kNow).value();
  const auto end = describe_certificate(authority.certificate_pem)->not_after_us;
  EXPECT_EQ(describe_certificate(machine_certificate(authority, 2 * kCaLifetime))->not_after_us, end);
}

TEST(Certificates, ServerNamesAreNamesOrAddressesAndNothingElse) {
  const auto authority = make_authority("an authority", kNow).value();
  const X509Ptr server =
      read_certificate(issue_server(authority, {"host.example", "192.0.2.7", "2001:db8::7"}, kNow)->certificate_pem, "")
          .value();
  EXPECT_EQ(X509_check_host(server.get(), kServerName, 0, 0, nullptr), 1);
  EXPECT_EQ(X509_check_host(server.get(), "host.example", 0, 0, nullptr), 1);
  EXPECT_EQ(X509_check_ip_asc(server.get(), "192.0.2.7", 0), 1);
  EXPECT_EQ(X509_check_ip_asc(server.get(), "2001:db8::7", 0), 1);
  for (const std::string bad : {"", "a b", "a,URI:tidemark:machine:00", "host:7443", "*.example", "h\nx"}) {
    EXPECT_EQ(issue_server(authority, {bad}, kNow).error().code, Code::invalid_argument) << bad;
  }
}

TEST(Certificates, ARequestThatIsNotSoundIsRefused) {
  const auto authority = make_authority("an authority", kNow).value();
  const auto issue = [&](const std::string& csr, const MachineId& id = some_machine(1)) {
    return issue_machine(authority, csr, id, kNow).error();
  };
  EXPECT_THAT(issue("").what, HasSubstr("not one in PEM form"));
  EXPECT_THAT(issue(authority.certificate_pem).what, HasSubstr("not one in PEM form"));
  const auto good = make_request(std::string(500, 'x')).value();  // a long name is no harm: it is ignored
  EXPECT_TRUE(issue_machine(authority, good.csr_pem, some_machine(1), kNow));
  EXPECT_THAT(issue(good.csr_pem, MachineId()).what, HasSubstr("no machine"));

  // Another key's signature.
  const KeyPtr key = read_key(good.key_pem, "").value();
  const KeyPtr other(EVP_EC_gen("P-256"));
  const X509ReqPtr request(X509_REQ_new());
  const auto pem = [&] {
    const BioPtr bio(BIO_new(BIO_s_mem()));
    PEM_write_bio_X509_REQ(bio.get(), request.get());
    char* data = nullptr;
    const long size = BIO_get_mem_data(bio.get(), &data);
    return std::string(data, static_cast<std::size_t>(size));
  };
  X509_REQ_set_pubkey(request.get(), key.get());
  X509_REQ_sign(request.get(), other.get(), EVP_sha256());
  EXPECT_THAT(issue(pem()).what, HasSubstr("signature is wrong"));
  for (EVP_PKEY* unwelcome : {EVP_RSA_gen(2048), EVP_EC_gen("P-384")}) {
    X509_REQ_set_pubkey(request.get(), unwelcome);
    X509_REQ_sign(request.get(), unwelcome, EVP_sha256());
    EXPECT_THAT(issue(pem()).what, HasSubstr("not a P-256 key"));
    EVP_PKEY_free(unwelcome);
  }
}

TEST(Certificates, OnlyAnAuthorityWithItsOwnKeySigns) {
  const auto authority = make_authority("an authority", kNow).value();
  const auto other = make_authority("another", kNow).value();
  const auto request = make_request("web1").value();
  const auto error_of = [&](const KeyAndCertificate& signer) {
    return issue_machine(signer, request.csr_pem, some_machine(1), kNow).error().what;
  };
  EXPECT_THAT(error_of({other.key_pem, authority.certificate_pem}), HasSubstr("does not belong"));
  const auto server = issue_server(authority, {}, kNow).value();
  EXPECT_THAT(error_of(server), HasSubstr("may sign"));
  const auto machine = issue_machine(authority, request.csr_pem, some_machine(1), kNow).value();
  EXPECT_THAT(error_of({request.key_pem, machine}), HasSubstr("may sign"));
  EXPECT_THAT(error_of({"no key", authority.certificate_pem}), HasSubstr("not a private key"));
}

TEST(Certificates, AKeyCanBeRenewedAsItIs) {
  const auto authority = make_authority("an authority", kNow).value();
  const auto first = make_request("web1").value();
  const auto csr = make_request_for_key(first.key_pem, "web1").value();
  const auto renewed = issue_machine(authority, csr, some_machine(1), kNow).value();
  const X509Ptr certificate = read_certificate(renewed, "").value();
  const KeyPtr key = read_key(first.key_pem, "").value();
  EXPECT_EQ(X509_check_private_key(certificate.get(), key.get()), 1);
}

}  // namespace
}  // namespace tidemark::net
