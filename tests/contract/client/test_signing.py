"""The software signer holds to the contract, and what it refuses becomes typed errors."""

import grpc
import pytest
from kmsapi.v1 import signing_pb2 as pb
from kmsd_client import AsyncClient, Denied, Overloaded, Refused, SigningError

from tests.contract.client.calls import CALL, FULL, GOOD, NO_GRANT
from tests.contract.signing_contract import ASSERTIONS, Assertion, Endpoint
from tests.contract.software_claims import Refusal
from tests.contract.software_signer import SoftwareSigner
from tests.contract.tls_parts import Parts


@pytest.mark.parametrize("assertion", ASSERTIONS, ids=lambda a: a.__name__)
async def test_the_software_signer_holds_to(
    assertion: Assertion, client: AsyncClient, signer: SoftwareSigner, target: str, parts: Parts
) -> None:
    credentials = grpc.ssl_channel_credentials(parts.ca, parts.caller_key, parts.caller_certificate)
    async with grpc.aio.secure_channel(target, credentials) as channel:
        await assertion(Endpoint(client, channel, "acme", signer.public_key))


async def test_a_refusal_tells_reason_sentence_and_facts(
    client: AsyncClient, signer: SoftwareSigner
) -> None:
    signer.faults.next_calls = [NO_GRANT]
    with pytest.raises(Denied) as caught:
        await client.sign_shaken(*CALL)
    assert caught.value.reason == "PROFILE_NOT_GRANTED"
    assert caught.value.message == "Not yours."
    assert caught.value.metadata == {"profile": "acme"}


async def test_an_overloaded_signer_says_how_long_to_wait(
    client: AsyncClient, signer: SoftwareSigner
) -> None:
    signer.faults.next_calls = [FULL, FULL]
    signer.faults.next_streams = [FULL]
    calls = (client.sign_shaken(*CALL), client.sign_shaken(*CALL), client.sign_many([GOOD, GOOD]))
    for call in calls:  # a stream that ends so, a frame of a stream, a frame of its own
        with pytest.raises(Overloaded) as caught:
            await call
        assert caught.value.reason == "OVERLOADED"
        assert caught.value.retry_after == 2.5
    assert signer.calls == 2
    assert signer.streams == 2


async def test_a_status_without_reason_is_named_after_its_code(
    client: AsyncClient, signer: SoftwareSigner
) -> None:
    signer.faults.next_calls = [Refusal(grpc.StatusCode.INTERNAL, "", "boom")]
    with pytest.raises(SigningError) as caught:
        await client.sign_shaken(*CALL)
    assert type(caught.value) is SigningError
    assert caught.value.reason == "INTERNAL"


async def test_reasons_of_another_domain_are_not_taken_for_ours(
    client: AsyncClient, signer: SoftwareSigner
) -> None:
    foreign = Refusal(
        grpc.StatusCode.NOT_FOUND, "PROFILE_UNKNOWN", "no", domain="proxy.example.com"
    )
    for call in (client.sign_many([GOOD, GOOD]), client.sign_shaken(*CALL)):
        signer.faults.next_calls, signer.faults.next_streams = [foreign], [foreign]
        with pytest.raises(Refused) as caught:
            await call
        assert caught.value.reason == "NOT_FOUND"
        assert caught.value.metadata == {}


@pytest.mark.parametrize(
    "answer",
    [
        pb.SignResponse(sequence=99, results=[pb.SignResult(signed=pb.Signed(identity="x"))]),
        pb.SignResponse(sequence=1),
        pb.SignResponse(sequence=1, results=[pb.SignResult()]),
        pb.SignResponse(sequence=1, results=[pb.SignResult(signed=pb.Signed())]),
        pb.SignResponse(sequence=1, results=[pb.SignResult(signed=pb.Signed(identity="x"))] * 2),
    ],
    ids=["other sequence", "no result", "no outcome", "no identity", "two results"],
)
async def test_an_answer_that_does_not_fit_is_no_signature(
    client: AsyncClient, signer: SoftwareSigner, answer: pb.SignResponse
) -> None:
    signer.faults.next_calls = [answer]
    with pytest.raises(SigningError) as caught:
        await client.sign_shaken(*CALL)
    assert caught.value.reason == "BAD_ANSWER"


async def test_a_refused_frame_of_one_is_in_the_list_and_a_longer_one_raised(
    client: AsyncClient,
) -> None:
    [outcome] = await client.sign_many([GOOD], profile="nobody")
    assert isinstance(outcome, Refused)
    with pytest.raises(Refused):
        await client.sign_many([GOOD, GOOD], profile="nobody")
    assert await client.sign_many([]) == []
